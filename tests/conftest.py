"""What every test may rely on, wherever the tests are started."""

import signal

# A shell that starts a job in the background lets it ignore Ctrl-C; the tests of Ctrl-C need Python's own handler.
signal.signal(signal.SIGINT, signal.default_int_handler)
