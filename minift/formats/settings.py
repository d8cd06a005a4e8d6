"""The errors of files: settings that minift does not have, and damage of any kind.

If minift ignored a setting of another library, nothing would fail, but the numbers would be wrong. So a setting that
minift does not have is refused by its name.
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
    """Inside, any error that a damaged file causes becomes a MiniftError that names the file, except Unreadable."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        problem = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise MiniftError(f"{where} is damaged, or of a kind that minift does not read: {problem}") from error
