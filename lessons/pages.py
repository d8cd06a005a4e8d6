"""The course as static pages: a page a lesson, linked to the next, with the modules that the lessons speak of.

nbconvert turns the cells into HTML; the frame around them is here and loads nothing from anywhere, so that the folder
can be put on any server or stick. Left out: search, comments.
"""

import html
import json
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

ROOT = Path(__file__).resolve().parents[1]
COLOURS = HtmlFormatter(style="default")
CSS = COLOURS.get_style_defs(".highlight") + """
body { max-width: 66rem; margin: 0 auto; padding: 1rem 1.2rem 4rem; background: #fff; color: #1a1a1a;
       font: 17px/1.6 Georgia, "Times New Roman", serif; }
.text_cell_render > p, li { max-width: 46rem; }
h1, h2, h3, nav, th { font-family: "Segoe UI", "Helvetica Neue", Arial, sans-serif; line-height: 1.25; }
h1 { font-size: 1.9rem; } h2 { font-size: 1.35rem; margin-top: 2.4rem; } h3 { font-size: 1.1rem; margin-top: 1.8rem; }
nav { display: flex; justify-content: space-between; gap: 1rem; font-size: 0.9rem; border-bottom: 1px solid #ccc;
      padding: 0.4rem 0; } nav.end { border: 0; border-top: 1px solid #ccc; margin-top: 3rem; }
a { color: #00529b; } .anchor-link { display: none; } img { max-width: 100%; height: auto; }
pre, code { font-family: "DejaVu Sans Mono", Consolas, Menlo, monospace; font-size: 0.8rem; line-height: 1.45; }
code { background: #f2f2f2; padding: 0.05rem 0.25rem; border-radius: 3px; } pre code { background: none; padding: 0; }
pre { margin: 0; overflow-x: auto; }
.jp-InputArea-editor, .input .highlight { background: #f5f7fa; border-left: 3px solid #00529b; padding: 0.6rem 0.8rem; }
ul.contents { list-style: none; padding: 0; }
.cell { margin: 0.9rem 0; } .output_area { padding: 0.5rem 0.8rem; } .output_area pre { white-space: pre-wrap; }
.output_html pre { white-space: pre; } .prompt { display: none; }
.text_cell_render .highlight, .text_cell_render > pre, li pre { background: #f5f7fa; padding: 0.6rem 0.8rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.92rem; display: block; overflow-x: auto; }
th, td { border: 1px solid #ccc; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }
@media print { nav { display: none; } body { font-size: 11pt; } pre { white-space: pre-wrap; } }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><link rel="stylesheet" href="{up}style.css"></head>
<body>{nav}
{body}
{end}</body></html>
"""


def write(lessons, out):
    """Write the course into the folder `out`: index.html, a page for each notebook of `lessons`, and the sources."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "style.css").write_text(CSS, encoding="utf-8")
    exporter = HTMLExporter(template_name="basic", exclude_anchor_links=True)
    linked = set()
    for number, path in enumerate(lessons):
        notebook = nbformat.read(path, as_version=4)
        del notebook.cells[1]                           # finds minift: of no use to a reader
        body, _ = exporter.from_notebook_node(notebook)
        neighbours = [lessons[i] if 0 <= i < len(lessons) else None for i in (number - 1, number + 1)]
        put(out / f"{path.stem}.html", title_of(path), relink(body, linked), navigation(*neighbours))
    index = markdown2html((ROOT / "lessons" / "README.md").read_text(encoding="utf-8"))
    put(out / "index.html", "minift: the lessons", contents(lessons) + relink(index, linked), "")
    for name in sorted(linked):
        copy(name, out / "source")
    print(f"{len(lessons)} lessons and {len(linked)} sources in {out}; open {out / 'index.html'}")


def put(file, title, body, nav, up=""):
    end = nav.replace("<nav>", '<nav class="end">')
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(PAGE.format(title=html.escape(title), body=body, nav=nav, end=end, up=up), encoding="utf-8")


def title_of(path):
    """The first heading of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "".join(cells[0]["source"]).splitlines()[0].lstrip("# ")


def navigation(before, after):
    """Links to the lessons before and after, and to the list of all."""
    links = [f'<a href="{path.stem}.html">{left}{html.escape(title_of(path))}{right}</a>' if path else "<span></span>"
             for path, left, right in ((before, "&larr; ", ""), (after, "", " &rarr;"))]
    return f'<nav>{links[0]}<a href="index.html">all lessons</a>{links[1]}</nav>'


def contents(lessons):
    """The list of the lessons with their titles, for the first page."""
    items = (f'<li><a href="{path.stem}.html">{html.escape(title_of(path))}</a></li>' for path in lessons)
    return f'<h1>Fine-tuning from scratch</h1>\n<ul class="contents">{"".join(items)}</ul>\n'


def relink(body, linked):
    """Point links between lessons to their pages, and links into the repository to the copies; collects the latter."""
    def target(match):
        link, anchor = match[1], match[2] or ""
        if link.startswith(("http", "#", "data:")):
            return match[0]
        if link.endswith(".ipynb"):
            return f'href="{link.removesuffix(".ipynb")}.html{anchor}"'
        name = link.removeprefix("../")
        if not (ROOT / name).is_file():            # a folder, such as data/instructions
            return ""
        linked.add(name)
        return f'href="source/{name}{".html" if name.endswith(".py") else ""}"'
    return re.sub(r'href="([^"#]*)(#[^"]*)?"', target, body)


def copy(name, folder):
    """A file of the repository beside the course: Python as a page with line numbers, all else as it is."""
    if not name.endswith(".py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
        return
    code = highlight((ROOT / name).read_text(encoding="utf-8"), PythonLexer(), HtmlFormatter(linenos="inline"))
    put(folder / f"{name}.html", name, f"<h2>{name}</h2>{code}", "", up="../" * (name.count("/") + 1))
