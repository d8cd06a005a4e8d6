"""The one family of errors that a user can cause, so that the command line can print them as one plain sentence."""


class MiniftError(ValueError):
    """Bad input or a bad setting: the message names the file, line, key or value, what was expected, and the remedy."""
