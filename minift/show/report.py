"""A report of a run as one HTML page, which works offline and prints well; and tables for the terminal.

Everything is in one file, pictures too (as data: URLs, RFC 2397). The page runs no script and loads nothing, and its
content security policy forbids both. Left out: interaction.
"""

import base64
import unicodedata
from dataclasses import dataclass
from html import escape
from itertools import chain
from pathlib import Path

from minift.core.files import read_bytes, write_text
from minift.errors import MiniftError
from minift.show.pictures import code, visible

# A page with {{title}} and {{body}} to be filled in.
PAGE = Path(__file__).with_name("report.html")


@dataclass(frozen=True)
class Section:
    """One part of a report.

    sentence: what was found, in plain words. rows: a table (dicts), or None. texts: samples as (label, text); a text
    may be an object with the method _repr_html_, such as show.Tokens. pictures: paths of PNG files.
    """

    title: str
    sentence: str
    rows: list | None = None
    texts: list | tuple = ()
    pictures: list | tuple = ()


def write_report(path, title, lead, sections, table=None):
    """Write one self-contained HTML file, atomically: title, lead, the closing table's rows (dicts), then the sections.

    Raises MiniftError when a picture is missing or is not a PNG file.
    """
    parts = [f"<h1>{html(title)}</h1>", f'<p class="lead">{html(lead)}</p>']
    if table:
        parts.append(table_html(table))
    links = [f'<li><a href="#section-{i}">{html(section.title)}</a></li>' for i, section in enumerate(sections, 1)]
    parts.append(f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>')
    parts += [section_html(section, i) for i, section in enumerate(sections, 1)]
    page = PAGE.read_text(encoding="utf-8").replace("{{title}}", html(title))
    write_text(path, page.replace("{{body}}", "\n".join(parts)))


def section_html(section, number):
    """One section: its sentence, table, pictures, samples."""
    parts = [f'<h2>{html(section.title)}</h2>', f'<p class="sentence">{html(section.sentence)}</p>']
    if section.rows:
        parts.append(table_html(section.rows))
    for picture in section.pictures:
        alt = f"{section.title}: picture {Path(picture).stem}".replace("-", " ").replace("_", " ")
        parts.append(f'<figure><img alt="{html(alt)}" src="{data_url(picture)}"></figure>')
    for label, text in section.texts:
        body = text._repr_html_() if hasattr(text, "_repr_html_") else f"<pre>{html(text)}</pre>"
        parts.append(f"<figure><figcaption>{html(label)}</figcaption>{body}</figure>")
    return f'<section id="section-{number}">\n' + "\n".join(parts) + "\n</section>"


def data_url(path):
    """A PNG file as a data: URL."""
    data = read_bytes(path)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise MiniftError(f"{path} is not a PNG file; save pictures as .png to put them into a report")
    return "data:image/png;base64," + base64.b64encode(data).decode()


def html(text):
    """The text, escaped for the inside of an element or attribute; control characters appear as their codes."""
    codes = (code(c) if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in str(text))
    return escape("".join(codes))


# ---- tables ----


def table_html(rows, columns=None):
    """Rows (dicts) as an HTML table; columns: the keys to show, in order (default: all). Numbers are right-aligned."""
    columns = columns_of(rows) if columns is None else columns
    side = {column: ' class="number"' if is_numeric(rows, column) else "" for column in columns}
    head = "".join(f'<th scope="col"{side[column]}>{html(column)}</th>' for column in columns)
    body = ""
    for row in rows:
        body += "<tr>" + "".join(f"<td{side[c]}>{html(cell(row.get(c)))}</td>" for c in columns) + "</tr>\n"
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>'


def table_text(rows, columns=None):
    """Rows (dicts) as aligned columns for the terminal; columns: the keys to show, in order (default: all)."""
    columns = columns_of(rows) if columns is None else columns
    if not columns:
        return "(nothing)"
    cells = [[visible(column) for column in columns]]
    for row in rows:
        cells.append([visible(cell(row.get(c))) for c in columns])
    widths = [max(map(text_width, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    numeric = [is_numeric(rows, column) for column in columns]
    lines = ["  ".join(aligned(*part) for part in zip(line, widths, numeric, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def table_markdown(rows, columns=None):
    """Rows (dicts) as a table in Markdown; columns: the keys to show, in order (default: all)."""
    columns = columns_of(rows) if columns is None else columns
    return markdown([columns, *([cell(row.get(column)) for column in columns] for row in rows)])


def markdown(rows):
    """Rows (lists of texts) as a table in Markdown; the first row is its heading."""
    rows = [[text.replace("|", "\\|") for text in row] for row in rows]
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def columns_of(rows):
    return list(dict.fromkeys(chain.from_iterable(rows)))


def is_numeric(rows, column):
    """Whether a column holds numbers and nothing else."""
    values = [scalar(row[column]) for row in rows if row.get(column) is not None]
    return bool(values) and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def scalar(value):
    """A number out of a tensor or array of one element; anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def cell(value):
    """A value as a table shows it: three decimals, yes or no, "-" for None."""
    value = scalar(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1e}" if 0 < abs(value) < 0.001 else f"{value:.3f}"


def text_width(text):
    """The number of columns of a terminal that the text takes: two for wide characters (你), 0 for combining ones."""
    apart = [c for c in text if not unicodedata.combining(c)]
    wide = [c for c in apart if unicodedata.east_asian_width(c) in "WF"]
    return len(apart) + len(wide)


def aligned(text, width, right):
    space = " " * (width - text_width(text))
    return space + text if right else text + space
