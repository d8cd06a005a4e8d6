"""The command line: `python -m minift VERB`. The verb's job is called with the options; errors become one line.

A mistake of the user's is one sentence on stderr and exit code 2; Ctrl-C is exit code 130. PyTorch is loaded after the
command has been understood, so that --help answers at once.
"""

import importlib
import os
import sys
import warnings

from minift.cli.verbs import parse
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
            run(parse(sys.argv[1:] if argv is None else argv))
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


def run(options):
    """Call the job of a verb: a function of a module of minift.cli that takes the options."""
    if options.verb == "tour":
        from minift import tour
        tour.run(out=options.out, seed=options.seed, seeds=options.seeds, stages=options.stages, quick=options.quick,
                 resume=options.resume)
        return
    module, _, function = options.job.partition(".")
    getattr(importlib.import_module(f"minift.cli.{module}"), function)(options)


def show_warning(message, category, filename, lineno, file=None, line=None):
    print(f"warning: {message}", file=sys.stderr)


def complain(error, code):
    """One line on stderr; returns the exit code."""
    print(f"minift: {' '.join(str(error).split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
