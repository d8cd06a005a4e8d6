"""A lesson as text, for writing and for reading differences: Markdown in which each ```python block is a code cell.

    python -m lessons.build text 05 > lora.md         the notebook's cells, without outputs
    python -m lessons.build notebook lora.md 05_lora  the text as a notebook, to be run

The notebook is the source; the text is only a way to edit it, and the way back gives the same cells. The first code
cell, which finds minift, is the same in every lesson and is not in the text. A line `<!-- cell -->` parts two cells of
prose.
"""

START = '''\
# Finds minift. In Colab, where a notebook stands alone, put the address of minift's repository here first.
import os, sys
from pathlib import Path
REPOSITORY = ""
if "google.colab" in sys.modules and not Path("minift").exists():
    assert os.system(f"git clone -q {REPOSITORY} minift") == 0, "set REPOSITORY to the address of minift's repository"
places = [place for place in (Path("minift").resolve(), Path.cwd(), *Path.cwd().parents)
          if (place / "lessons" / "start.py").exists()]
assert places, "a lesson needs minift beside it: open it in the folder lessons of a clone of the repository"
os.chdir(places[0])
sys.path.insert(0, os.getcwd())
import lessons.start'''
SPLIT = "<!-- cell -->"
METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"}}


def cells_of(text):
    """The (kind, source) of each cell of a text: "markdown" or "code"; START is put behind the first."""
    cells, kind, lines, fence = [], "markdown", [], None

    def close():
        source = "\n".join(lines).strip("\n")
        if source.strip():
            cells.append((kind, source))
        lines.clear()

    for line in text.splitlines():
        if kind == "markdown" and fence is None and line.rstrip() in ("```python", SPLIT):
            close()
            kind = "markdown" if line.rstrip() == SPLIT else "code"
        elif kind == "code" and line.rstrip() == "```":
            close()
            kind = "markdown"
        else:
            if kind == "markdown" and line.startswith("```"):
                fence = None if fence else line
            lines.append(line)
    close()
    return [cells[0], ("code", START), *cells[1:]]


def from_text(text):
    """A notebook (nbformat 4.5, as a dict) of the text's cells, without outputs."""
    cells = []
    for number, (kind, source) in enumerate(cells_of(text)):
        cell = {"cell_type": kind, "id": f"cell-{number:02d}", "metadata": {}, "source": source.splitlines(True)}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def to_text(notebook):
    """The text of a notebook's cells; from_text gives them back."""
    parts, before = [], None
    for cell in notebook["cells"]:
        kind, source = cell["cell_type"], "".join(cell["source"])
        if kind == "code" and source == START:
            continue
        if kind == "code":
            parts.append(f"```python\n{source}\n```")
        else:
            parts += [SPLIT, source] if before == "markdown" else [source]
        before = kind
    return "\n\n".join(parts) + "\n"
