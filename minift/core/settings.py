"""Checks of numbers that a user sets; the MiniftError names the setting, its value and what is allowed."""

import math
from numbers import Integral, Real

from minift.errors import MiniftError


def check_whole(name, value, least):
    """MiniftError unless `value` is a whole number of at least `least`."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise MiniftError(f"{name} is {value!r}; expected a whole number of at least {least}")


def check_number(name, value, least=-math.inf, most=math.inf, above=-math.inf):
    """MiniftError unless `value` is a finite number with least <= value <= most and value > above."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and least <= value <= most and value > above:
        return
    limits = []
    if above > -math.inf:
        limits.append(f"more than {above}")
    if least > -math.inf:
        limits.append(f"at least {least}")
    if most < math.inf:
        limits.append(f"at most {most}")
    raise MiniftError(f"{name} is {value!r}; expected a finite number, {' and '.join(limits)}")
