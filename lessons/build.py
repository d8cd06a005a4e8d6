"""Runs the lessons, and makes the static course of them.

    python -m lessons.build run 05          run lesson 05 in a fresh kernel and write its outputs into the notebook
    python -m lessons.build check           run all lessons, write nothing; fail on an error or on a slow lesson
    python -m lessons.build html runs/course     the course as linked pages for a reader without Jupyter
    python -m lessons.build text 05         the lesson as text (see lessons/text.py), `notebook` is the way back

What changes from run to run for no reason (times, progress bars, the kernel's details) is left out of what is written.
"""

import argparse
import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from lessons import pages, text
from minift.errors import MiniftError
from minift.formats.pretrained import locate

HERE = Path(__file__).resolve().parent
MEAN_SECONDS, MOST_SECONDS = 90, 180        # of a lesson, on two CPU cores
WEIGHTS = {"15_real_model": "smollm2"}      # lessons that need the weights of a package


def find(names=()):
    """The notebooks of the lessons whose names begin with one of `names`; all without names. Exits if there is none."""
    found = sorted(path for path in HERE.glob("[0-9][0-9]_*.ipynb")
                   if not names or any(path.name.startswith(name.zfill(2)) for name in names))
    if not found:
        sys.exit(f"no lesson is called {', '.join(names)}; there are {', '.join(p.stem for p in find())}")
    return found


def can_run(path):
    """Whether the weights that a lesson needs are installed; if not, says so: its committed outputs stand."""
    try:
        return path.stem not in WEIGHTS or bool(locate(WEIGHTS[path.stem]))
    except MiniftError as error:
        print(f"{path.name}: NOT RUN, its committed outputs stand ({error})", flush=True)
        return False


def execute(path, limit=MOST_SECONDS):
    """Run a notebook from top to bottom in a fresh kernel: (notebook with outputs, seconds, error or None)."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=limit, kernel_name="python3", record_timing=False,
                            extra_arguments=["--log-level=ERROR"],      # no word about TCP without encryption
                            resources={"metadata": {"path": str(HERE)}})
    start, error = time.perf_counter(), None
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as failure:
        error = re.sub("\x1b\\[[0-9;]*m", "", str(failure))        # the kernel's colours
    return notebook, time.perf_counter() - start, error


def clean(notebook):
    """Leave out what is noise: bars on stderr, widgets, metadata. Exits on other messages on stderr: they are bugs."""
    notebook.metadata = nbformat.from_dict(text.METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = nbformat.from_dict({}), f"cell-{number:02d}"
        if cell.cell_type != "code":
            continue
        kept = []
        for output in cell.outputs:
            if output.get("name") == "stderr":
                if output.text.strip() and "%|" not in output.text:
                    sys.exit(f"cell {number} writes to stderr: {output.text}")
            elif "application/vnd.jupyter.widget-view+json" not in output.get("data", {}):
                if "metadata" in output:
                    output.metadata = nbformat.from_dict({})
                if kept and output.get("name") == kept[-1].get("name") == "stdout":
                    kept[-1].text += output.text        # whether a kernel sends text in one piece is chance
                else:
                    kept.append(output)
        cell.outputs = kept
    return notebook


def write_notebook(notebook, path):
    """Write a notebook made from text; where only prose has changed, the outputs that are there already stay."""
    def code(cells):
        return [cell for cell in cells if cell["cell_type"] == "code"]

    def sources(cells):
        return ["".join(cell["source"]) for cell in cells[1:]]      # the first only finds minift
    if path.exists():
        old, new = code(json.loads(path.read_text(encoding="utf-8"))["cells"]), code(notebook["cells"])
        if sources(old) == sources(new):
            for before, after in zip(old, new):
                after.update(outputs=before["outputs"], execution_count=before["execution_count"])
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def run(paths):
    """Run each notebook and write it back; exits at the first that fails."""
    for path in paths:
        notebook, seconds, error = execute(path, limit=3600)
        if error:
            sys.exit(f"{path.name}: {error}")
        nbformat.write(clean(notebook), path)
        print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


def check(paths, jobs):
    """Run all without writing, `jobs` at a time; exits when one fails or is too slow, or when all are on average."""
    wrong, times, paths = [], [], [path for path in paths if can_run(path)]
    with ThreadPoolExecutor(jobs) as pool:
        for path, (_, seconds, error) in zip(paths, pool.map(execute, paths)):
            times.append(seconds)
            print(f"{path.name}: {seconds:.0f} s{', FAILED' if error else ''}", flush=True)
            if error or seconds > MOST_SECONDS:
                wrong.append(f"{path.name}: {error or f'{seconds:.0f} s, more than {MOST_SECONDS} s'}")
    mean = sum(times) / len(times)
    print(f"{len(paths)} lessons, mean {mean:.0f} s, most {max(times):.0f} s")
    if mean > MEAN_SECONDS:
        wrong.append(f"the mean is {mean:.0f} s, more than {MEAN_SECONDS} s")
    if wrong:
        sys.exit("\n".join(wrong))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("run", "check", "text"):
        verbs.add_parser(verb).add_argument("lessons", nargs="*", help="numbers; all without")
    verbs.choices["check"].add_argument("--jobs", type=int, default=1, help="how many at a time")
    back = verbs.add_parser("notebook")
    back.add_argument("text", type=Path)
    back.add_argument("name", help="of the lesson, such as 05_lora")
    verbs.add_parser("html").add_argument("out", type=Path)
    options = parser.parse_args()
    if options.verb == "run":
        run(find(options.lessons))
    elif options.verb == "check":
        check(find(options.lessons), options.jobs)
    elif options.verb == "text":
        for path in find(options.lessons):
            print(text.to_text(json.loads(path.read_text(encoding="utf-8"))), end="")
    elif options.verb == "notebook":
        write_notebook(text.from_text(options.text.read_text(encoding="utf-8")), HERE / f"{options.name}.ipynb")
    else:
        pages.write(find(), options.out)


if __name__ == "__main__":
    main()
