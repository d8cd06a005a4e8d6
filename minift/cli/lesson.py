"""The verb lesson."""

from minift.learn.lesson import lesson

__all__ = ["lesson"]
