"""A report is one file that shows all it was given, exactly, and needs nothing else."""

import base64
import random
import re
import unicodedata
from html.parser import HTMLParser

import pytest
import torch

from minift import show
from minift.errors import MiniftError
from minift.show import report
from minift.text.tokenizer import Tokenizer

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
                       "AABJRU5ErkJggg==")       # one pixel
NASTY = "<script>alert(\"1\")</script> & 'x' </pre></title></style> https://example.com/ {title}"
VOID = {"meta", "img", "!doctype"}


class Page(HTMLParser):
    """A page taken apart: its tags with attributes, the text of each kind of element, its tables."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.stack, self.texts, self.tables = [], [], {}, []
        self.feed(text)
        assert not self.stack, "every element is closed"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.texts.setdefault(tag, []).append("")
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag, "elements are nested"
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self.texts[tag][-1])

    def handle_data(self, data):
        for tag in self.stack:
            self.texts[tag][-1] += data


def write(folder, sections, write_report=report.write_report, **settings):
    arguments = {"title": "A title", "lead": "A lead.", "table": None, **settings}
    write_report(folder / "report.html", sections=sections, **arguments)
    return Page((folder / "report.html").read_bytes().decode("utf-8"))


def test_every_text_appears_and_none_becomes_markup(tmp_path, write_report=report.write_report):
    """Titles, sentences, labels, samples, cells and column names are shown letter by letter, whatever they contain."""
    section = report.Section(NASTY, NASTY + " 2", [{NASTY: NASTY}], [(NASTY, NASTY + "\nnext line\n  你🙂")], [])
    page = write(tmp_path, [section], write_report, title=NASTY, lead=NASTY, table=[{"a": NASTY}])
    assert page.texts["title"] == page.texts["h1"] == page.texts["h2"] == page.texts["li"] == [NASTY]
    assert page.texts["p"] == [NASTY, NASTY + " 2"]
    assert page.texts["figcaption"] == [NASTY]
    assert page.texts["pre"] == [NASTY + "\nnext line\n  你🙂"]
    assert page.tables == [[["a"], [NASTY]], [[NASTY], [NASTY]]]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}


def test_nothing_is_fetched(tmp_path, write_report=report.write_report):
    """Every address in the page is its own (#) or data:, its style imports nothing, and its policy forbids the rest."""
    (tmp_path / "a.png").write_bytes(PNG)
    page = write(tmp_path, [report.Section("One", "Said.", pictures=[tmp_path / "a.png"])], write_report)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data", "poster", "background"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|http", "".join(page.texts["style"]))
    policy = [tag["content"] for name, tag in page.tags if tag.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in policy[0]


def test_pictures_are_inside_byte_for_byte(tmp_path, write_report=report.write_report):
    """Each picture decodes to the bytes of its file, in order, and has a text for those who cannot see it."""
    fig, ax = show.figure()
    show.bars(ax, ["a"], [1], ylabel="y")
    show.save(fig, tmp_path / "loss-curve.png")
    (tmp_path / "b.png").write_bytes(PNG)
    files = [tmp_path / "loss-curve.png", str(tmp_path / "b.png")]
    page = write(tmp_path, [report.Section('Say "hi"', "Said.", pictures=files)], write_report)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert [base64.b64decode(image["src"].split(",")[1]) for image in images] == \
        [(tmp_path / "loss-curve.png").read_bytes(), PNG]
    assert [image["alt"] for image in images] == ['Say "hi": picture loss curve', 'Say "hi": picture b']


def test_the_page_says_its_language_and_encoding_and_links_its_sections(tmp_path, write_report=report.write_report):
    """lang, charset and viewport are set; the contents link to each section in order, also when titles repeat."""
    sections = [report.Section("Same", "1"), report.Section("Same", "2"), report.Section("Other", "3")]
    page = write(tmp_path, sections, write_report)
    tags = {tag: attributes for tag, attributes in page.tags if tag == "html"}
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert tags["html"]["lang"] == "en" and metas[0] == {"charset": "utf-8"} and metas[1]["name"] == "viewport"
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert links == ["#" + name for name in ids] and len(set(ids)) == 3
    assert page.texts["h2"] == page.texts["li"] == ["Same", "Same", "Other"]
    assert page.tables == []
    style = "".join(page.texts["style"])
    assert "prefers-color-scheme: dark" in style and "@media print" in style and style.count("{") == style.count("}")


def test_tokens_show_themselves(tmp_path, write_report=report.write_report):
    """A sample that is a show.Tokens keeps its colours: learned text is in <b>."""
    tokenizer = Tokenizer.train(["a cat"], 300)
    ids = tokenizer.encode("a <cat> sat")
    tokens = show.Tokens(tokenizer, torch.tensor(ids), [i >= 2 for i in range(len(ids))])
    page = write(tmp_path, [report.Section("One", "Said.", texts=[("mask", tokens)])], write_report)
    assert "".join(page.texts["b"]) == tokenizer.decode(ids[2:])
    assert page.texts["pre"] == ["a <cat> sat"]


def test_a_bad_picture_is_refused_and_the_old_report_stays(tmp_path, write_report=report.write_report):
    """A missing file or one that is no PNG is a MiniftError that names it; what was there before is untouched."""
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    (tmp_path / "a.png").write_bytes(b"<svg onload=alert(1)>")
    for name, words in (("a.png", "not a PNG"), ("missing.png", "missing.png")):
        with pytest.raises(MiniftError, match=words):
            write(tmp_path, [report.Section("One", "Said.", pictures=[tmp_path / name])], write_report)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "report.html"]


def test_characters_that_a_page_cannot_hold_appear_as_codes(tmp_path, write_report=report.write_report):
    """Control characters and lone surrogates, which a model or a bad file may bring, are shown as codes."""
    page = write(tmp_path, [report.Section("One", "\x00\x1b[31m\ud800 \tx")], write_report)
    assert page.texts["p"][1] == "\\x00\\x1b[31m\\ud800 \tx"


# ---- tables ----


@pytest.mark.parametrize(("value", "text"), [
    (None, "-"), (True, "yes"), (False, "no"), (7, "7"), (12345, "12345"), (0.5, "0.500"), (-2 / 3, "-0.667"),
    (0.0, "0.000"), (0.00012, "1.2e-04"), (-1234.6, "-1,235"), (float("nan"), "nan"), (float("-inf"), "-inf"),
    ("a b", "a b"), (torch.tensor(0.25), "0.250"), (torch.tensor(3), "3")])
def test_cells_are_short_and_never_lie_about_size(value, text, cell=report.cell):
    """Three decimals; small numbers keep their order of magnitude, large ones lose decimals; nothing is a dash."""
    assert cell(value) == text


def columns_apart(line, rule):
    """Cut a line of a table at the dashes of its rule, as a terminal sees it; the texts of its columns."""
    screen = []
    for c in line:
        if unicodedata.category(c) == "Mn":
            screen[-1] += c
        else:
            screen += [c, ""] if unicodedata.east_asian_width(c) in "WF" else [c]
    return ["".join(screen[part.start():part.end()]) for part in re.finditer("-+", rule)]


def test_text_columns_align(table_text=report.table_text):
    """Cut where the dashes stand, every line gives back its cells: numbers to the right, words to the left."""
    rng = random.Random(0)
    for _ in range(100):
        rows = [{"name": rng.choice(["a", "a longer one", "你好", "e\u0301"]) * rng.randint(1, 3),
                 "score of all": rng.gauss(0, 500), "你n": rng.choice([None, rng.randint(0, 10**6)])}
                for _ in range(rng.randint(1, 6))]
        head, rule, *lines = table_text(rows).split("\n")
        assert len(lines) == len(rows) and set(rule) == {"-", " "}
        for line, row in zip(lines, rows, strict=True):
            name, score, count = columns_apart(line, rule)
            assert name.rstrip() == row["name"] and not name.startswith(" ")
            assert score.lstrip() == report.cell(row["score of all"]) and not score.endswith(" ")
            assert count.strip() == report.cell(row["你n"])
            assert line == line.rstrip()
        assert [cell.strip() for cell in columns_apart(head, rule)] == ["name", "score of all", "你n"]


def test_a_cell_stays_on_its_line(table_text=report.table_text):
    """Newlines and control characters are shown as marks, so that a row is a line and the terminal stays as it is."""
    assert table_text([{"a": "x\ny\x1b[31m"}]).split("\n") == ["a", "-" * 11, "x¶y\\x1b[31m"]
    assert table_text([], ["a"]).split("\n") == ["a", "-"]
    assert table_text([]) == "(nothing)"


def test_columns_can_be_chosen(table_html=report.table_html, table_text=report.table_text):
    """Only the columns asked for, in that order; without a choice all keys, in the order in which they first appear."""
    rows = [{"a": 1, "b": "x"}, {"c": 0.5, "a": 2}]
    assert Page(table_html(rows)).tables == [[["a", "b", "c"], ["1", "x", "-"], ["2", "-", "0.500"]]]
    assert Page(table_html(rows, ["c", "a"])).tables == [[["c", "a"], ["-", "1"], ["0.500", "2"]]]
    assert [line.split() for line in table_text(rows, ["c", "a"]).split("\n")[2:]] == [["-", "1"], ["0.500", "2"]]


def test_numbers_stand_to_the_right_in_html(table_html=report.table_html):
    """Cells of columns that hold only numbers have the class that aligns them; flags and words have not."""
    rows = [{"n": 1, "word": "x", "flag": True, "mixed": 1}, {"n": None, "word": "y", "flag": False, "mixed": "z"}]
    page = Page(table_html(rows))
    classes = [attributes.get("class") for tag, attributes in page.tags if tag in ("td", "th")]
    assert classes == ["number", None, None, None] * 3
