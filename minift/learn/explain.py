"""What check() says to a learner: which laws hold, and for each that fails what was compared, where, and why perhaps.

Left out: pytest's own report, which is for those who know the test.
"""

import linecache
import re
import sysconfig
import textwrap
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pytest

from minift.core.files import read_json
from minift.errors import MiniftError

TESTS = Path(__file__).resolve().parents[2] / "tests"
LIBRARIES = tuple(
    {str(TESTS), str(TESTS.parent / "minift"), "<frozen",
     *map(sysconfig.get_paths().get, ("stdlib", "purelib", "platlib"))})
# Test -> {a part of the failed line or of its message: the usual mistake}; the part "" stands for any. A law that says
# by itself what is wrong has no hint.
HINTS = read_json(Path(__file__).with_name("hints.json"))
# Columns of a report.
WIDTH = 100
HINT = "this looks like: "


@dataclass
class Law:
    """One test: what it states, and how the learner's function fared in its cases (more than one if parametrized)."""

    file: Path
    # Of the test function.
    name: str
    # Its docstring: the law.
    text: str
    # The names that it takes as default arguments.
    takes: frozenset
    n_cases: int = 0
    # A Failure for each case that failed.
    failures: list = field(default_factory=list)
    # Why pytest skipped it, if it did.
    skipped: str = ""


@dataclass
class Failure:
    """Why a case failed: lines to show, whether the function is still to be written, what it printed."""

    lines: list
    unwritten: bool
    printed: str


def explain(law, excinfo, signatures):
    """Where the test stopped, what it compared or which error arose at which line of the learner's, and a hint."""
    message = str(excinfo.value)
    here = [entry for entry in excinfo.traceback if entry.name == law.name]
    lines = [f"{law.file.name}, line {here[-1].lineno + 1}: {one_line(here[-1].statement)}"] if here else []
    refusal_missing = excinfo.errisinstance(pytest.fail.Exception)
    if not excinfo.errisinstance(AssertionError) and not refusal_missing:
        return lines + [
            f"error: {excinfo.typename}: {one_line(message)}", *own_line(excinfo),
            *remedies(excinfo, message, signatures), *other_error(excinfo, here)]
    if refusal_missing:
        found = f"{one_line(message)} (what should be refused with an error is let pass)"
    else:
        found = compared(excinfo, message)
    hints = HINTS.get(law.name, {})
    all_said = " ".join([*lines, message, found])
    hint = next(
        (hint for part, hint in hints.items() if part and part in all_said),
        None if refusal_missing else hints.get(""))
    return lines + [
        f"found: {found}", *remedies(excinfo, message, signatures),
        *([HINT + hint] if hint and "None" not in found else [])]


def compared(excinfo, message):
    """The values that differ: two small tensors, or the first part of the message of pytest or torch."""
    for entry in excinfo.traceback:
        pair = entry.frame.f_locals if entry.name == "assert_close" else {}
        if all(hasattr(pair.get(name), "tolist") and pair[name].numel() <= 12 for name in ("actual", "expected")):
            text, expected = digits(pair["actual"]), digits(pair["expected"])
            most = f"{(pair['actual'] - pair['expected']).abs().max():.1g}" if text == expected else ""
            return f"{text}; expected: {expected}" + (f", they differ by up to {most}" if most else "")
    refused = re.search(r"Expected regex: (.*)\n +Actual message: (.*)", message)
    if refused:
        return f"the error is right, but its message must hold {refused[1]}; it is {one_line(refused[2])}"
    noise = ("+", "-", "?", "Use -v", "Full diff", "Omitting")
    kept = [line for line in message.splitlines() if not line.lstrip().startswith(noise)]
    # The rest repeats it.
    text = one_line(" ".join(kept)).removeprefix("assert ").partition(" comparison failed")[0]
    return text.removeprefix("(" * (text.count("(") > text.count(")"))) or "the values differ"


def digits(tensor):
    """A tensor's numbers in six digits, with its shape."""
    text = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.6g}", str(tensor.tolist()))
    return f"{text} of shape {tuple(tensor.shape)}"


def own_line(excinfo):
    """The learner's own line at which an error arose; nothing when it arose elsewhere."""
    own = [
        (str(entry.path), entry.lineno + 1) for entry in excinfo.traceback
        if not str(entry.path).startswith(LIBRARIES)]
    return [f"at your line {own[-1][1]}: {linecache.getline(*own[-1]).strip()}"] if own else []


def remedies(excinfo, message, signatures):
    """What to do about the two mistakes of form: no value returned, other arguments than the library's."""
    if "NoneType" in message or "None mismatch" in message or "None is not" in message:
        return ["your function returns None; is a return missing?"]
    if excinfo.errisinstance(TypeError) and "argument" in message:
        return [f"the library's is called as {signature}" for signature in signatures]
    return []


def other_error(excinfo, here):
    """Says so when the test expects a MiniftError and another error came."""
    # The line above the call.
    before = linecache.getline(str(here[-1].path), here[-1].lineno) if here else ""
    if "pytest.raises(MiniftError" in before and not excinfo.errisinstance(MiniftError):
        return ["an error is right here, but it must be a MiniftError (minift.errors)"]
    return []


def one_line(text, most=300):
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[:most - 4] + " ..."


def report(laws, functions, hints=True):
    """All that is to be said, as one text. What was said under one law is not said again under the next."""
    names = ", ".join(functions)
    if any(failure.unwritten for failure in chain.from_iterable(law.failures for law in laws)):
        return "\n".join([f"{names}: not written yet. The laws to keep:", *(entry("-", law) for law in laws)])
    failures = [law.failures[0] for law in laws if law.failures]
    n_held = sum(not law.failures and not law.skipped for law in laws)
    noun, verb = "law" if n_held == len(laws) == 1 else "laws", "holds" if n_held == 1 else "hold"
    lines, said = [f"{names}: {n_held} of {len(laws)} {noun} {verb}"], set()
    for law in laws:
        lines.append(entry("FAILS" if law.failures else "skipped" if law.skipped else "holds", law))
        for i, line in enumerate(law.failures[0].lines if law.failures else ()):
            some = f" ({len(law.failures)} of {law.n_cases} cases)" if i == 0 and law.n_cases > 1 else ""
            again = " (as above)" if i == 0 and said.issuperset(law.failures[0].lines[1:] or [line]) else ""
            if line not in said and (hints or not line.startswith(HINT)):
                lines.append(
                    textwrap.fill(line + some + again, WIDTH, initial_indent=" " * 9,
                                  subsequent_indent=" " * 13))
            said.add(line)
    printed = failures[0].printed.rstrip() if failures else ""
    return "\n".join(lines + ([f"\nYour function printed:\n{printed}"] if printed else []))


def entry(mark, law):
    """One law with its mark in front."""
    text = f"{law.text} (skipped: {law.skipped})" if law.skipped else law.text
    return textwrap.fill(text, WIDTH, initial_indent=f"  {mark:7s}", subsequent_indent=" " * 9)
