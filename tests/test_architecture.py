"""The shape of the code itself: imports point down, files are read as UTF-8, nothing unpickles, nothing calls home."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "minift"
FILES = sorted(PACKAGE.rglob("*.py"))

# What can be read in an afternoon, and what can be read at all. Characters and lines of code: without docstrings, and
# without lines that hold only a comment.
AFTERNOON = ("core", "text", "methods", "evaluation")
LARGEST = {"afternoon": 180_000, "package": 670_000, "characters a line": 50, "lines of a file": 300,
           "lines of a function": 60, "files that know the options": 12}

# The tower, from the ground up: each folder may import itself and what stands before it here.
TOWER = ["errors", "core", "text", "methods", "formats", "evaluation", "ways", "label", "world", "show", "studies",
         "learn", "tour", "cli", "__main__"]
# No other method imports another.
SHARED_METHODS = {("methods.ppo_loop", "methods.ppo"), ("methods.ppo_loop", "methods.rollout"),
                  ("methods.grpo", "methods.ppo"), ("methods.grpo", "methods.rollout"), ("methods.kto", "methods.dpo")}


def place(path):
    """The module's name inside the package: "core.train"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path):
    """The names of minift's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "minift":
            inside = node.module.removeprefix("minift").lstrip(".")
            found |= {f"{inside}.{alias.name}".lstrip(".") for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("minift.") for alias in node.names if alias.name.startswith("minift")}
    return found


def permitted(importer, imported):
    """Whether the module `importer` ("core.train") may import the name `imported` ("core.step.take_step")."""
    above, below = importer.split(".")[0], imported.split(".")[0]
    if above == below == "methods":
        return any(importer == one and f"{imported}.".startswith(other + ".") for one, other in SHARED_METHODS)
    return below in TOWER[:TOWER.index(above) + 1]


@pytest.mark.parametrize("path", [path for path in FILES if place(path) not in ("", "errors")], ids=place)
def test_imports_point_down(path):
    """Each folder imports only itself and what is below it in the tower; a method imports no other method."""
    wrong = sorted(name for name in imports(path) if not permitted(place(path), name))
    assert not wrong, f"{place(path)} imports {wrong}"


def test_the_rule_itself_can_fail():
    """A loss that imported another method, or a core that imported a text module, would be noticed."""
    assert not permitted("methods.ppo", "methods.reward.x") and not permitted("core.train", "text.batches")
    assert not permitted("methods.ppo", "methods.ppo_loop.x") and permitted("methods.ppo_loop", "methods.ppo.gae")
    assert not permitted("evaluation.metrics", "world.scenes") and permitted("world.scenes", "evaluation.metrics")


@pytest.mark.parametrize("path", FILES, ids=place)
def test_text_is_read_and_written_as_utf8(path):
    """On Windows the default encoding is another one, so every call that opens text names its encoding."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        literals = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        binary = any(re.fullmatch(r"[rwax]?\+?b\+?[rwax]?", text) for text in literals)
        if name in ("read_text", "open") and isinstance(node.func, ast.Attribute | ast.Name) and not binary:
            if name == "open" and isinstance(node.func, ast.Attribute):
                continue      # os.open, webbrowser.open and the like take no encoding
            assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{path.name}:{node.lineno}"


def test_nothing_unpickles_or_downloads():
    """Weights are safetensors: no torch.load, no pickle, no weights_only=False; no module calls home."""
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for word in ("torch.load", "pickle", "weights_only", "urllib", "requests", "get_encoding", "http.client"):
            used = re.search(rf"^\s*(import|from) {word}\b|(?<![\w.]){re.escape(word)}\(", text, re.M)
            assert not used, f"{word} in {path.name}"


@pytest.mark.parametrize("path", FILES, ids=place)
def test_every_module_says_what_it_is_for(path):
    """A module opens with a docstring; every public function and class has one."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), path
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and node.name != "main":
            lines = node.end_lineno - node.lineno
            assert ast.get_docstring(node) or lines <= 12, f"{path.name}: {node.name} has no docstring"


def test_the_map_of_the_afternoon_path():
    """minift/__init__.py lists every module of core, text, methods and evaluation once, and no other."""
    listed = re.findall(r"^    (\w+/\w+) ", (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.M)
    there = [place(path).replace(".", "/") for path in FILES
             if place(path).split(".")[0] in ("core", "text", "methods", "evaluation") and path.stem != "__init__"]
    assert sorted(listed) == sorted(there)


# ---- how large it may be ----

NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(text):
    """The lines of code of a source: no blank lines, no lines of comment alone, no docstrings."""
    rows = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            rows |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)
        if documented:
            rows -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return [line for number, line in enumerate(text.splitlines(), start=1) if number in rows]


def test_code_is_counted_without_words():
    """Blank lines, comments alone and docstrings do not count; a comment at the end of a line of code does."""
    text = '"""Module.\n\nMore.\n"""\n\n# why\nx = 1  # (B,)\n\n\ndef f():\n    """Say it."""\n    return """a\nb"""\n'
    assert code_lines(text) == ["x = 1  # (B,)", "def f():", '    return """a', 'b"""']


@pytest.mark.parametrize("what, folders", [("afternoon", AFTERNOON), ("package", None)])
def test_it_can_be_read(what, folders):
    """So many characters of code and no more, and on average so many a line: by less code, not by denser code."""
    lines = []
    for path in FILES:
        if folders is None or place(path).split(".")[0] in folders:
            lines += code_lines(path.read_text(encoding="utf-8"))
    characters = sum(map(len, lines))
    assert characters <= LARGEST[what]
    assert characters / len(lines) <= LARGEST["characters a line"]


@pytest.mark.parametrize("path", FILES, ids=place)
def test_a_file_and_a_function_can_be_read_in_one_sitting(path):
    """A longer file usually holds two ideas; a longer function, two acts. The docstring counts."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= LARGEST["lines of a file"]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= LARGEST["lines of a function"], f"{path.name}: {node.name} has {length} lines"


def module_of(name):
    """The file of the module in which minift's name "cli.run.Run" is defined; None for another library's name."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:n])
        if path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
    return None


def knows_options(path):
    """Whether a file has a variable or a parameter that is called `options`."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return any("options" in (getattr(node, "id", ""), getattr(node, "arg", "")) for node in nodes)


def test_the_options_stay_in_the_command_line():
    """Only a few of the files of cli/ that sft imports know the options; the others receive single values."""
    reached, todo = set(), [PACKAGE / "__main__.py", PACKAGE / "cli/sft.py"]
    while todo:
        path = todo.pop()
        if path not in reached:
            reached.add(path)
            todo += [found for name in imports(path) if name.startswith("cli.") and (found := module_of(name))]
    know = {place(path) for path in reached if knows_options(path)}
    assert {"__main__", "cli.sft", "cli.run", "cli.examples"} <= know
    assert len(know) <= LARGEST["files that know the options"], sorted(know)
