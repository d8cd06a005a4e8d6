"""The verb `lesson`: open one of the course's notebooks in Jupyter, or list them."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from minift.core.files import read_json
from minift.errors import MiniftError

FOLDER = Path(__file__).resolve().parents[2] / "lessons"


def lesson(options):
    """Open the lesson that options.number names in the Jupyter that is installed; without a number, list them."""
    lessons = find_lessons()
    if options.list or options.number is None:
        for number, path in sorted(lessons.items()):
            print(f"{number:3d}  {title(path)}")
        return
    if options.number not in lessons:
        raise MiniftError(f"there is no lesson {options.number}; there are {', '.join(map(str, sorted(lessons)))}, "
                          "and --list shows their titles")
    program = next((name for name in ("jupyterlab", "notebook") if find_spec(name)), None)
    if program is None:
        raise MiniftError("Jupyter is not installed: pip install -r requirements-lessons.txt, or open "
                          f"{lessons[options.number]} in VS Code or Colab")
    # So that a lesson's links to modules and tests open too.
    root = f"--ServerApp.root_dir={FOLDER.parent}"
    subprocess.run([sys.executable, "-m", program, str(lessons[options.number]), root, *options.jupyter], check=False)


def find_lessons():
    """number -> notebook; MiniftError where minift is installed without its repository."""
    lessons = {int(path.name[:2]): path for path in FOLDER.glob("[0-9][0-9]_*.ipynb")}
    if not lessons:
        raise MiniftError(f"there are no lessons in {FOLDER}; work in a clone of minift's repository")
    return lessons


def title(path):
    """The first heading of a notebook, without its number."""
    cells = read_json(path)["cells"]
    return re.sub(r"^[#\s]*(\d+\s+)?", "", "".join(cells[0]["source"]).splitlines()[0])
