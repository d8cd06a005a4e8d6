"""The lessons as files: list them, and open one in Jupyter."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from minift.core.files import read_json
from minift.errors import MiniftError

FOLDER = Path(__file__).resolve().parents[2] / "lessons"


def list_lessons():
    """Print the number and the title of every lesson."""
    for number, path in sorted(find_lessons().items()):
        print(f"{number:3d}  {title(path)}")


def open_lesson(number, jupyter_options=()):
    """Open a lesson in the Jupyter that is installed. MiniftError: no such lesson, or no Jupyter."""
    lessons = find_lessons()
    if number not in lessons:
        raise MiniftError(
            f"there is no lesson {number}; there are {', '.join(map(str, sorted(lessons)))}, "
            "and --list shows their titles")
    program = next((name for name in ("jupyterlab", "notebook") if find_spec(name)), None)
    if program is None:
        raise MiniftError(
            "Jupyter is not installed: pip install -r requirements-lessons.txt, or open "
            f"{lessons[number]} in VS Code or Colab")
    # Jupyter starts at the root of the repository, so that a lesson's links to modules and tests work.
    root = f"--ServerApp.root_dir={FOLDER.parent}"
    subprocess.run([sys.executable, "-m", program, str(lessons[number]), root, *jupyter_options], check=False)


def find_lessons():
    """number -> path of the notebook; MiniftError if minift is installed without its repository."""
    lessons = {int(path.name[:2]): path for path in FOLDER.glob("[0-9][0-9]_*.ipynb")}
    if not lessons:
        raise MiniftError(f"there are no lessons in {FOLDER}; work in a clone of minift's repository")
    return lessons


def title(path):
    """The first heading of a notebook, without its number."""
    cells = read_json(path)["cells"]
    return re.sub(r"^[#\s]*(\d+\s+)?", "", "".join(cells[0]["source"]).splitlines()[0])
