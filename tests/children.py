"""Child processes that a test may kill at any moment, or whose memory it measures.

Those to kill come from a fork server, a process that has never started a thread: a fork of pytest itself can inherit a
lock that one of torch's threads held and wait for it for ever.
"""

import multiprocessing
import os
import subprocess
import sys
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


MEASURE = """
import threading, time
{before}
def used():
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))
def watch():
    while True:
        peak[0] = max(peak[0], used())
        time.sleep(0.002)
base = used()
peak = [base]
threading.Thread(target=watch, daemon=True).start()
start = time.perf_counter()
{work}
print("measured", max(peak[0], used()) - base, time.perf_counter() - start)
"""


def measure(before, work):
    """Bytes of memory of its own (mapped files not counted) that a fresh Python needs for `work`, and the seconds."""
    code = MEASURE.format(before=before, work=work)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=False)
    assert run.returncode == 0, run.stderr
    peak, seconds = run.stdout.split("measured")[-1].split()
    return int(peak), float(seconds)


def peak_while(before, work):
    """The bytes alone."""
    return measure(before, work)[0]
