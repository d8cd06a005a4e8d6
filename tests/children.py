"""Child processes that a test may kill at any moment.

They come from a fork server, a process that has never started a thread: a fork of pytest itself can inherit a lock that
one of torch's threads held and wait for it for ever.
"""

import multiprocessing
import os
import time

import pytest

posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL, which Windows does not have")


def start(function, *args):
    """Run function(*args) in a child process; returns the started process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])
    process = context.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def kill_while(function, *args, ready, rng, within):
    """Start function(*args) in a child, wait for the file `ready`, then kill the child within so many seconds."""
    process, deadline = start(function, *args), time.monotonic() + 60
    while not ready.exists() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert ready.exists(), "the child never got as far as its first save"
    time.sleep(within * rng.random())
    process.kill()
    process.join(20)
    ready.unlink()
