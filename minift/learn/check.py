"""check(dpo_loss=mine): run the library's own tests of a function on your version of it, and report law by law.

A test takes the function that it tests as a default argument, and its docstring is the law. pytest does not fill
arguments with defaults, so the same test checks the library in the test suite and your function here. Left out:
functions that no test takes as an argument.
"""

import ast
import contextlib
import difflib
import inspect
import io
from functools import cache, partial

import pytest
import torch

from minift.errors import MiniftError
from minift.learn.explain import TESTS, Failure, Law, explain, report


def check(*, hints=True, **functions):
    """Print which laws hold for your functions. Give each under the library's name: check(dpo_loss=mine).

    Several functions are tested together. hints=False: no guess at the mistake, for exercises in which you find it.
    Raises MiniftError for a name that no test takes, and for a value that is no function.
    """
    print(report(examine(functions), functions, hints))


def examine(functions):
    """Run every test that takes one of the names on the given functions. Returns the Laws, in the tests' order."""
    if not functions:
        raise MiniftError("check() needs your function under the library's name, as in check(dpo_loss=my_dpo_loss)")
    laws = find_laws(functions)
    run(laws, functions)
    return laws


def find_laws(names):
    """The Laws of the test modules whose default arguments have one of these names. MiniftError: an unknown name."""
    if not TESTS.is_dir():
        raise MiniftError(f"check() runs the tests in {TESTS}, which is missing; work in a clone of the repository")
    laws = []
    for file in sorted(TESTS.glob("test_*.py")):
        laws += [Law(file, *test) for test in read_tests(file)]
    known = set().union(*(law.takes for law in laws))
    for name, value in dict(names).items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            hint = f"; the nearest are {', '.join(near)}" if near else ""
            raise MiniftError(f"no test takes {name!r}{hint}")
        if not callable(value):
            raise MiniftError(f"{name} is a {type(value).__name__}, not a function; give it without brackets")
    return [law for law in laws if law.takes & set(names)]


@cache
def read_tests(file):
    """(name, docstring on one line, names of arguments with defaults) of each test in a file. Does not import it."""
    tests = []
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            with_default = node.args.args[len(node.args.args) - len(node.args.defaults):]
            law = ast.get_docstring(node) or node.name.replace("_", " ")
            takes = frozenset(arg.arg for arg in with_default)
            tests.append((node.name, " ".join(law.split()), takes))
    return tests


def run(laws, functions):
    """Let pytest run the laws' tests on the learner's functions, and write the results into the Laws."""
    tests = [f"{law.file}::{law.name}" for law in laws]
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen), torch.random.fork_rng(devices=[]):
        code = pytest.main(
            [*tests, "-p", "no:cacheprovider", "--capture=sys", "--color=no",
             f"--rootdir={TESTS.parent}"],
            plugins=[Substitute(laws, functions)])
    if code == pytest.ExitCode.INTERRUPTED and "KeyboardInterrupt" in screen.getvalue():
        raise KeyboardInterrupt
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise MiniftError(f"pytest could not run the tests: {' '.join(screen.getvalue().split())[-500:]}")


class Substitute:
    """A plugin of pytest's: puts the learner's functions into the tests, and writes what happens into the Laws."""

    def __init__(self, laws, functions):
        self.laws, self.functions = {(law.file, law.name): law for law in laws}, functions
        # Name -> the name and parameters of the library's function.
        self.signatures = {}

    def law_of(self, item):
        return self.laws[item.path, item.originalname]

    def pytest_collection_modifyitems(self, items):
        for item in items:
            mine = {name: self.functions[name] for name in self.law_of(item).takes & set(self.functions)}
            arguments = inspect.signature(item.obj).parameters
            self.signatures |= {name: f"{name}{inspect.signature(arguments[name].default)}" for name in mine}
            item.obj = partial(item.obj, **mine)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        law, result = self.law_of(item), (yield)
        if call.when == "call":
            law.n_cases += 1
        if result.skipped:
            law.skipped = str(call.excinfo.value)
        elif result.failed:
            unwritten = call.excinfo.errisinstance(NotImplementedError)
            lines = explain(law, call.excinfo, self.signatures.values())
            law.failures.append(Failure(lines, unwritten, result.capstdout))
        return result
