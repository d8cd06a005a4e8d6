"""The report of check(): which laws hold, and for each law that fails, what was compared, where, and a likely reason.

Left out: pytest's own report, which is for readers who know the test.
"""

import linecache
import re
import sysconfig
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from minift.core.files import read_json
from minift.errors import MiniftError

TESTS = Path(__file__).resolve().parents[2] / "tests"
LIBRARIES = tuple(
    {str(TESTS), str(TESTS.parent / "minift"), "<frozen",
     *map(sysconfig.get_paths().get, ("stdlib", "purelib", "platlib"))})
# Test -> {a part of the failed line or of its message: the usual mistake}. The part "" matches every failure. A law
# whose text already says what is wrong has no hint.
HINTS = read_json(Path(__file__).with_name("hints.json"))
# Characters in a line of a report.
WIDTH = 100
HINT = "this looks like: "


@dataclass
class Law:
    """One test: its law, and the results of its cases for the learner's function (several cases if parametrized)."""

    file: Path
    # The name of the test function.
    name: str
    # Its docstring: the law.
    text: str
    # The names of its arguments with defaults.
    takes: frozenset
    n_cases: int = 0
    # A Failure for each case that failed.
    failures: list = field(default_factory=list)
    # Why pytest skipped it, if it did.
    skipped: str = ""

    @property
    def state(self):
        """"FAILS", "skipped" or "holds"."""
        if self.failures:
            return "FAILS"
        return "skipped" if self.skipped else "holds"


@dataclass
class Failure:
    """Why a case failed: lines to show, whether the function is still to be written, what it printed."""

    lines: list
    unwritten: bool
    printed: str


def explain(law, excinfo, signatures):
    """Lines that say where the test stopped, what it compared or which error the learner's code raised, and a hint."""
    # Say where the test stopped.
    message = str(excinfo.value)
    here = [entry for entry in excinfo.traceback if entry.name == law.name]
    lines = [f"{law.file.name}, line {here[-1].lineno + 1}: {one_line(here[-1].statement)}"] if here else []
    refusal_missing = excinfo.errisinstance(pytest.fail.Exception)
    if not excinfo.errisinstance(AssertionError) and not refusal_missing:
        return lines + [
            f"error: {excinfo.typename}: {one_line(message)}", *own_line(excinfo),
            *remedies(excinfo, message, signatures), *other_error(excinfo, here)]
    # Say what it compared, and what to do about it.
    hints = HINTS.get(law.name, {})
    if refusal_missing:
        hint, found = None, f"{one_line(message)} (what should be refused with an error is let pass)"
    else:
        hint, found = hints.get(""), compared(excinfo, message)
    # A hint for a part of the text is better than the general one.
    all_said = " ".join([*lines, message, found])
    hint = next((hint for part, hint in hints.items() if part and part in all_said), hint)
    lines += [f"found: {found}", *remedies(excinfo, message, signatures)]
    if hint and "None" not in found:
        lines.append(HINT + hint)
    return lines


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
    # What comes after this phrase repeats the values.
    text = one_line(" ".join(kept)).removeprefix("assert ")
    text, _, _ = text.partition(" comparison failed")
    if text.count("(") > text.count(")"):
        text = text.removeprefix("(")
    return text or "the values differ"


def digits(tensor):
    """A tensor's numbers in six digits, with its shape."""
    text = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.6g}", str(tensor.tolist()))
    return f"{text} of shape {tuple(tensor.shape)}"


def own_line(excinfo):
    """The learner's own line at which an error was raised, in a list; [] if it was raised elsewhere."""
    own = [
        (str(entry.path), entry.lineno + 1) for entry in excinfo.traceback
        if not str(entry.path).startswith(LIBRARIES)]
    return [f"at your line {own[-1][1]}: {linecache.getline(*own[-1]).strip()}"] if own else []


def remedies(excinfo, message, signatures):
    """Advice for two common mistakes: no value is returned; the arguments differ from the library's."""
    if "NoneType" in message or "None mismatch" in message or "None is not" in message:
        return ["your function returns None; is a return missing?"]
    if excinfo.errisinstance(TypeError) and "argument" in message:
        return [f"the library's is called as {signature}" for signature in signatures]
    return []


def other_error(excinfo, here):
    """A line for the case that the test expects a MiniftError and another error is raised; [] in all other cases."""
    # The line above the call, because lineno counts from 0.
    before = linecache.getline(str(here[-1].path), here[-1].lineno) if here else ""
    if "pytest.raises(MiniftError" in before and not excinfo.errisinstance(MiniftError):
        return ["an error is right here, but it must be a MiniftError (minift.errors)"]
    return []


def one_line(text, most=300):
    text = " ".join(str(text).split())
    return text if len(text) <= most else text[:most - 4] + " ..."


def report(laws, functions, hints=True):
    """The whole report as one text. A line that stands under one law is not repeated under the next."""
    names = ", ".join(functions)
    failures = sum((law.failures for law in laws), [])
    if any(failure.unwritten for failure in failures):
        return "\n".join([f"{names}: not written yet. The laws to keep:", *(entry("-", law) for law in laws)])
    # Say how many laws hold.
    n_held = [law.state for law in laws].count("holds")
    noun = "law" if n_held == len(laws) == 1 else "laws"
    verb = "holds" if n_held == 1 else "hold"
    lines, said = [f"{names}: {n_held} of {len(laws)} {noun} {verb}"], set()
    # Write each law, and below it the lines of its first failure that are new.
    for law in laws:
        lines.append(entry(law.state, law))
        first = law.failures[0].lines if law.failures else []
        for i, line in enumerate(first):
            some = f" ({len(law.failures)} of {law.n_cases} cases)" if i == 0 and law.n_cases > 1 else ""
            again = " (as above)" if i == 0 and said.issuperset(first[1:] or [line]) else ""
            if line not in said and (hints or not line.startswith(HINT)):
                text = line + some + again
                lines.append(textwrap.fill(text, WIDTH, initial_indent=" " * 9, subsequent_indent=" " * 13))
            said.add(line)
    # Show what the function printed in the first failure.
    printed = failures[0].printed.rstrip() if failures else ""
    if printed:
        lines.append(f"\nYour function printed:\n{printed}")
    return "\n".join(lines)


def entry(mark, law):
    """One law with its mark in front."""
    text = f"{law.text} (skipped: {law.skipped})" if law.skipped else law.text
    return textwrap.fill(text, WIDTH, initial_indent=f"  {mark:7s}", subsequent_indent=" " * 9)
