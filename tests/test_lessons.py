"""The lessons as files: form, size, what they import and name, exercises, links that lead somewhere.

Whether they run is checked by `python -m lessons.build check`.
"""

import ast
import builtins
import importlib
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from lessons import text
from minift.__main__ import main
from minift.learn import check as checking
from minift.learn import lesson as job

ROOT = Path(__file__).parents[1]
LESSONS = sorted((ROOT / "lessons").glob("*.ipynb"))
EACH = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
# The folders that lessons import from.
TEACHING = ("core", "text", "methods", "formats", "evaluation", "ways", "world", "show", "learn")


@cache
def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def cells(path, kind):
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == kind]


def code(path):
    """The code cells without the first, which is the same everywhere."""
    return cells(path, "code")[1:]


def printed(cell):
    """What a cell has printed."""
    return "".join("".join(output.get("text", "")) for output in cell.get("outputs", ()))


def prose(path):
    """The text of the cells of prose, without pieces of code in it."""
    return re.sub(r"```.*?```|`[^`]*`", "", "\n\n".join(cells(path, "markdown")), flags=re.S)


def definitions(source):
    """The functions and classes that a source defines at its top level."""
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]


SCOPES = (ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def assigned(node):
    """The variables that a cell sets, in loops and branches too, but not inside functions and comprehensions."""
    names = {node.id} if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else set()
    children = [] if isinstance(node, SCOPES) else ast.iter_child_nodes(node)
    return names.union(*map(assigned, children))


@cache
def library_names():
    """The public functions and classes of the modules that lessons teach from."""
    files = [file for file in (ROOT / "minift").rglob("*.py")
             if file.relative_to(ROOT / "minift").with_suffix("").parts[0] in TEACHING]
    return {name for file in files for name in definitions(file.read_text(encoding="utf-8")) if name[0] != "_"}


def count_lines(source):
    """The lines of a source that are neither blank nor a comment nor in a docstring."""
    docstrings = {line for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)
                  and ast.get_docstring(node) for line in range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    return sum(number not in docstrings and line.strip() != "" and line.strip()[0] != "#"
               for number, line in enumerate(source.splitlines(), 1))


@EACH
def test_a_lesson_is_no_longer_than_one_sitting(path):
    """At most 25 cells besides the first of code, 100 lines of code, 1 MB, 120 columns."""
    n_lines = sum(map(count_lines, code(path)))
    assert len(read(path)["cells"]) <= 26 and n_lines <= 100 and path.stat().st_size <= 1_000_000
    assert max(map(len, "\n".join(cells(path, "code")).splitlines())) <= 120


@EACH
def test_a_lesson_is_committed_as_it_ran(path):
    """Every code cell has run, in order, without an error; the kernel's details and times are left out."""
    notebook = read(path)
    runs = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in runs] == list(range(1, len(runs) + 1))
    kinds = Counter(output.get("name", output["output_type"]) for cell in runs for output in cell["outputs"])
    assert not kinds.keys() & {"error", "stderr"}, f"{path.name} shows an error or a warning"
    assert notebook["metadata"] == text.METADATA and all(not cell["metadata"] for cell in notebook["cells"])


@EACH
def test_the_text_of_a_lesson_gives_its_cells_back(path):
    """A notebook's text is made into the same cells again, so it can be edited as text."""
    def sources(notebook):
        return [(cell["cell_type"], cell["id"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert sources(text.from_text(text.to_text(read(path)))) == sources(read(path))
    assert cells(path, "code")[0] == text.START


@EACH
def test_a_lesson_opens_and_closes_as_all_do(path):
    """What you will be able to do, minutes, what to have read; at the end five lines, exercises, papers."""
    opening, ending = cells(path, "markdown")[0], "\n".join(cells(path, "markdown"))
    assert re.match(rf"# {path.name[:2]} \S.*\n", opening)
    for part in ("**You will be able to**", "**It costs**", "**Read before**"):
        assert part in opening, part
    assert re.search(r"\*\*It costs\*\* \d+ minutes", opening)
    order = [ending.index(f"\n## {part}\n") for part in ("In five lines", "Exercises", "Papers")]
    assert order == sorted(order)
    summary = ending[order[0]:order[1]].split("\n## ")[1]
    assert len(re.findall(r"^\d\. ", summary, re.M)) == 5
    assert "\n## Papers\n" in f"\n{cells(path, 'markdown')[-1]}"


@EACH
def test_a_lesson_has_exercises_that_check_themselves(path):
    """3 to 6 exercises: at least two to write with check(), one with a bug to find, one open experiment."""
    numbers = re.findall(r"^### Exercise (\d)", "\n".join(cells(path, "markdown")), re.M)
    assert numbers == [str(i + 1) for i in range(len(numbers))] and 3 <= len(numbers) <= 6
    exercises = "\n".join(cells(path, "markdown")).split("\n## Exercises\n")[1]
    assert re.search(r"^### Exercise \d: find the bug", exercises, re.M | re.I)
    assert re.search(r"^### Exercise \d: an experiment", exercises, re.M | re.I)
    unwritten = {node.name for source in code(path) for node in ast.parse(source).body
                 if isinstance(node, ast.FunctionDef | ast.ClassDef) and "NotImplementedError" in ast.unparse(node)}
    assert len(unwritten) >= 2 and len(checks(path)) >= 3
    assert unwritten <= {value for _, value in checks(path)}


def checks(path):
    """(name, what is given for it) of each argument of a call of check() in a lesson."""
    return [(keyword.arg, ast.unparse(keyword.value)) for source in code(path) for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "check" for keyword in node.keywords
            if keyword.arg != "hints"]


@EACH
def test_a_bug_to_find_breaks_a_law(path):
    """What a lesson shows under a check without hints is a report in which a law fails, and no other error."""
    reports = [printed(cell) for cell in read(path)["cells"]
               if cell["cell_type"] == "code" and "hints=False" in "".join(cell["source"])]
    assert reports and all("\n  FAILS " in said and "error: " not in said for said in reports)


@EACH
def test_what_is_checked_has_laws(path):
    """Every check() of a lesson names a function that some test takes."""
    for name, _ in checks(path):
        assert checking.find_laws({name: print})


@EACH
def test_what_is_imported_exists(path):
    """Every name that a lesson imports from minift is there."""
    for source in code(path):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "minift":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")


@cache
def taught_names():
    """Every name that some lesson imports from minift."""
    nodes = [node for path in LESSONS for source in code(path) for node in ast.walk(ast.parse(source))]
    return {alias.name for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("minift")
            for alias in node.names}


@EACH
def test_no_name_of_the_library_is_taken(path):
    """No function or class has a name of minift's; no variable has one that lessons import, or one of Python's own."""
    for source in code(path):
        taken = set(definitions(source)) & library_names()
        taken |= assigned(ast.parse(source)) & (taught_names() | set(dir(builtins)))
        assert not taken, f"{path.name} redefines {taken}"


def test_no_name_is_defined_twice():
    """A function that two cells need, in one lesson or in two, belongs into the library."""
    names = Counter(name for path in LESSONS for source in code(path) for name in definitions(source))
    assert not [name for name, n in names.items() if n > 1]


@pytest.mark.parametrize("path", [*LESSONS, ROOT / "lessons" / "README.md"], ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    """Every link to another lesson or to a file of the repository is the path of one that exists."""
    written = path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n".join(cells(path, "markdown"))
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", written):
        assert link.startswith("http") or (path.parent / link).exists(), f"{path.name} links to {link}"


@EACH
def test_a_shown_source_is_the_present_one(path):
    """What a lesson shows of a module stands in that module now; if not, run the lesson again."""
    outputs = [output["data"] for cell in read(path)["cells"] for output in cell.get("outputs", ()) if "data" in output]
    for data in outputs:
        shown = re.match(r"<div><small>(minift/.*\.py), line \d+</small>", "".join(data.get("text/html", "")))
        if shown:
            here = re.sub(r"(?m)^ +", "", (ROOT / shown[1]).read_text(encoding="utf-8"))
            assert re.sub(r"(?m)^ +", "", "".join(data["text/plain"])) in here, f"{path.name} shows an old {shown[1]}"


@EACH
def test_a_reported_line_is_the_present_one(path):
    """The lines of tests that a lesson's reports name are these lines now; if not, run the lesson again."""
    shown = "".join(map(printed, read(path)["cells"]))
    for file, number, statement in re.findall(r"(test_\w+\.py), line (\d+): (.{,30})", shown):
        line = (ROOT / "tests" / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
        assert " ".join(line.split()).startswith(statement.rstrip()), f"{path.name}: {file}, line {number} is another"


@EACH
def test_prose_is_calm(path):
    """No exclamation marks, no LaTeX (which pages without a network cannot draw)."""
    assert "!" not in prose(path).replace("![", "[") and "$" not in prose(path)


def test_the_table_names_every_lesson():
    """lessons/README.md links to each lesson; the lessons are numbered without a number twice."""
    table = (ROOT / "lessons" / "README.md").read_text(encoding="utf-8")
    assert all(f"({path.name})" in table for path in LESSONS)
    assert len({path.name[:2] for path in LESSONS}) == len(LESSONS)


def test_a_lesson_opens_by_its_number(capsys, monkeypatch):
    """`lesson 1` starts Jupyter with that notebook; an unknown number, or no Jupyter, is one sentence, exit code 2."""
    started = []
    monkeypatch.setattr(job.subprocess, "run", lambda command, check: started.append(command))
    monkeypatch.setattr(job, "find_spec", lambda name: name == "notebook" or None)
    assert main(["lesson", "1"]) == 0 and started[0][1:3] == ["-m", "notebook"] and "01_" in started[0][3]
    assert started[0][4:] == [f"--ServerApp.root_dir={ROOT}"]           # or links to modules lead out of the root
    assert main(["lesson", "1", "--", "--no-browser"]) == 0 and started.pop()[5:] == ["--no-browser"]
    assert main(["lesson", "--list"]) == 0 and "  1  Tokens" in capsys.readouterr().out
    assert main(["lesson", "99"]) == 2 and "there is no lesson 99" in capsys.readouterr().err
    monkeypatch.setattr(job, "find_spec", lambda name: None)
    assert main(["lesson", "1"]) == 2 and "pip install -r requirements-lessons.txt" in capsys.readouterr().err
    assert len(started) == 1


def test_cells_are_cut_at_python_fences():
    """Prose and ```python blocks take turns; other fences stay prose; `<!-- cell -->` parts two cells of prose."""
    written = "# T\n\n```text\nno cell\n```\n\n```python\nx = 1\n\ny = 2\n```\n\none\n\n<!-- cell -->\n\ntwo\n"
    expected = [("markdown", "# T\n\n```text\nno cell\n```"), ("code", text.START), ("code", "x = 1\n\ny = 2"),
                ("markdown", "one"), ("markdown", "two")]
    assert text.cells_of(written) == expected
    assert text.to_text(text.from_text(written)) == written
