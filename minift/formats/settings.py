"""Settings in the files of other libraries: those with which minift computes the same, and an error for all others.

A setting that is not looked at would not fail, it would give wrong numbers. So what minift does not have is refused by
name, wherever a file says it.
"""

from contextlib import contextmanager

from minift.errors import MiniftError


class Unreadable(MiniftError):
    """A file asks for something that minift does not have; the message says which setting."""


def require(what, given, known):
    """Unreadable unless each key of `known` has its value in `given`, or one of a tuple of values; None: no such key.

    what: who has the settings, for the message.
    """
    for key, values in known.items():
        values = values if isinstance(values, tuple) else (values,)
        if given.get(key) not in values:
            expected = " or ".join(map(repr, values))
            raise Unreadable(f"{what} has {key} {given.get(key)!r:.60}, but minift only reads {expected}")


@contextmanager
def explain_errors(where):
    """Inside, a missing key, or a value that cannot be, becomes a MiniftError that names the file."""
    try:
        yield
    except KeyError as error:
        raise MiniftError(f"{where} lacks {error}") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        # A MiniftError is a ValueError, too.
        raise MiniftError(f"{where}: {error}") from error
