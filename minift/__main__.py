"""The command line: `python -m minift VERB`. The verb's module runs with the options; errors become one line.

A mistake of the user's is one sentence on stderr and exit code 2; Ctrl-C is exit code 130. PyTorch is loaded after the
command has been understood, so that --help answers at once.
"""

import os
import sys
import warnings

from minift.cli.parser import find_module, parse
from minift.errors import MiniftError

OUT_OF_MEMORY = "out of memory; lower --batch-size (and raise --accumulate), take --lora, or a shorter --context"


def main(argv=None):
    """Do what the command says; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A Windows console has few characters; better "?" than a crash.
            stream.reconfigure(errors="replace")
    with warnings.catch_warnings():
        warnings.showwarning = show_warning
        try:
            argv = sys.argv[1:] if argv is None else argv
            options = parse(argv)
            find_module(options.verb).run(options)
            return 0
        except MiniftError as error:
            return complain(error, 2)
        except KeyboardInterrupt as error:
            return complain(str(error) or "stopped", 130)
        # The reader of our output has gone, as in `... | head`
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            return complain(OUT_OF_MEMORY, 2)


def show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=sys.stderr)


def complain(error, code):
    """One line on stderr; returns the exit code."""
    print(f"minift: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
