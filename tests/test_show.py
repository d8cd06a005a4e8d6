"""What is seen must be what is there: colours follow the mask, text is drawn as it is, and pictures hold their data."""

import inspect
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from minift import show
from minift.errors import MiniftError
from minift.show import pictures
from minift.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["Where is the red kite? The red kite is in the park."] * 3, 300)
PAD, EOS = TOKENIZER.pad_id, TOKENIZER.eos_id
QUESTION = TOKENIZER.encode("Where is <b> & the $5 kite?\nThe $6 one.")
ANSWER = [*TOKENIZER.encode("In the\n\npark & <i>."), EOS]


class Parser(HTMLParser):
    """(tag stack, text) of each piece of text in a piece of HTML."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.pieces = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.pieces.append((tuple(self.stack), data))


def letters(row, mask):
    """Each character that the tokens should show, with whether it is learned, worked out token by token."""
    return [(c, bool(learned)) for i, learned in zip(row, mask, strict=True)
            for c in TOKENIZER.token_bytes(i).decode("ascii").replace("\n", "¶\n")]


def random_sequence(rng):
    """Ids of readable tokens with a mask: a few learned, a few not, padding at the end, sometimes a learned pad."""
    row = [*rng.choices(QUESTION + ANSWER, k=rng.randint(1, 60)), *[PAD] * rng.randint(0, 3)]
    return row, [rng.random() < 0.4 for _ in row]


# ---- tokens in the terminal and in a notebook ----


def test_learned_tokens_are_bold_green_and_all_others_grey(Tokens=show.Tokens):
    """Read back with a terminal's rules, each character has its mask's colour, and the last colour is closed."""
    rng = random.Random(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NO_COLOR", raising=False)
        for _ in range(50):
            row, mask = random_sequence(rng)
            seen, colour = [], ""
            for code, text in re.findall(r"\x1b\[([\d;]*)m|([^\x1b]+)", str(Tokens(TOKENIZER, row, mask))):
                colour = code if not text else colour
                assert not text or colour in ("1;32", "90")
                seen += [(c, colour == "1;32") for c in text]
            assert seen == letters(row, mask)
            assert colour == "0"


def test_without_colour_the_mask_is_in_guillemets(Tokens=show.Tokens):
    """NO_COLOR set: no escape code at all, and exactly the learned text stands between « and »."""
    rng = random.Random(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        for _ in range(50):
            row, mask = random_sequence(rng)
            text, inside, seen = str(Tokens(TOKENIZER, row, mask)), False, []
            assert "\x1b" not in text
            for c in text:
                if c in "«»":
                    assert inside == (c == "»")
                    inside = c == "«"
                else:
                    seen.append((c, inside))
            assert seen == letters(row, mask)


def test_no_colour_that_is_empty_does_not_count(Tokens=show.Tokens):
    """An empty NO_COLOR leaves the colours on, as no-color.org says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "")
        assert "\x1b[1;32m" in str(Tokens(TOKENIZER, ANSWER, [True] * len(ANSWER)))


def test_text_cannot_command_the_terminal(Tokens=show.Tokens):
    """Control characters in the data appear as codes and never reach the terminal; a character in parts is whole."""
    ids = TOKENIZER.encode("a\x1b[2J\r\t\u202e\u200b你🙂")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        assert str(Tokens(TOKENIZER, ids, [0] * len(ids))) == r"a\x1b[2J\r\t\u202e\u200b你🙂"
        assert str(Tokens(TOKENIZER, [0xE4, 0xBD], [0, 0])) == r"\xe4\xbd"


def test_the_notebook_shows_each_token_by_its_mask(Tokens=show.Tokens):
    """The HTML parses into the same characters, learned ones in <b>, and no text of the data becomes a tag."""
    rng = random.Random(2)
    for _ in range(50):
        row, mask = random_sequence(rng)
        pieces = Parser(Tokens(TOKENIZER, torch.tensor(row), torch.tensor(mask))._repr_html_()).pieces
        assert {stack for stack, _ in pieces} <= {("pre", "b"), ("pre", "span"), ("pre", "s")}
        assert [(c, stack[-1] == "b") for stack, text in pieces for c in text] == letters(row, mask)
        padding = sum(i == PAD and not learned for i, learned in zip(row, mask, strict=True))
        assert sum(stack[-1] == "s" for stack, _ in pieces) == padding


@pytest.mark.parametrize(("ids", "mask", "words"), [
    ([1, 2, 3], [True, False], "2 values for 3 tokens"), ([[1, 2]], [[0, 1]], "input_ids[0]"), (7, [1], "one sequence"),
    ([1, 2], [-100, 5], "labels != -100"), ([1, 99999], [0, 1], "99999"),
    (torch.zeros(2, 2).long(), [0, 1], "one sequence")])
def test_a_mask_that_does_not_belong_is_refused(ids, mask, words, Tokens=show.Tokens):
    """Wrong lengths, batches, labels in place of a mask and unknown ids are errors that say so."""
    with pytest.raises(MiniftError, match=re.escape(words)):
        Tokens(TOKENIZER, ids, mask)


# ---- tokens in a picture ----


def drawn(draw_tokens, rows, masks, width=60, shape=(1, 1)):
    """(figure, axes, [(text artist, its box)] in reading order, {state: colour} as the legend says)."""
    fig, axes = show.figure(*shape)
    ax = axes if shape == (1, 1) else axes.flat[0]
    draw_tokens(ax, TOKENIZER, rows, masks, width)
    fig.draw_without_rendering()
    colours = {text.get_text(): to_hex(box.get_facecolor())
               for text, box in zip(ax.get_legend().get_texts(), ax.get_legend().get_patches(), strict=True)}
    boxes = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    pairs = []
    for text in sorted(ax.texts, key=lambda text: (text.get_position()[1], text.get_position()[0])):
        x, y = text.get_position()
        inside = [b for b in boxes if b.get_x() - 0.1 <= x < b.get_x() + b.get_width() - 0.1
                  and b.get_y() <= y <= b.get_y() + b.get_height()]
        assert len(inside) == 1, "each text lies in exactly one box"
        pairs.append((text, inside[0]))
    assert len(pairs) == len(boxes)
    return fig, ax, pairs, colours


def test_the_boxes_have_the_colours_that_the_legend_gives_the_mask(draw_tokens=show.draw_tokens):
    """Several sequences in a picture: each character lies in a box of its state's colour, in the tokens' order."""
    rng = random.Random(3)
    sequences = [random_sequence(rng) for _ in range(5)]
    _, _, pairs, colours = drawn(draw_tokens, [row for row, _ in sequences], [mask for _, mask in sequences])
    assert set(colours) == {"learned", "not learned", "padding"} and len(set(colours.values())) == 3
    expected = []
    for row, mask in sequences:
        for i, learned in zip(row, mask, strict=True):
            state = "learned" if learned else "padding" if i == PAD else "not learned"
            expected += [(c, colours[state]) for c in TOKENIZER.token_bytes(i).decode().replace("\n", "¶")]
    assert [(c, to_hex(box.get_facecolor())) for text, box in pairs for c in text.get_text()] == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
def test_the_text_fits_its_boxes_and_no_boxes_overlap(shape, draw_tokens=show.draw_tokens):
    """In the finished figure no text sticks out of its box, boxes of a line lie side by side, none leaves the axes."""
    row, mask = QUESTION + ANSWER * 3, [False] * len(QUESTION) + [True] * 3 * len(ANSWER)
    fig, ax, pairs, _ = drawn(draw_tokens, [row, row], [mask, mask], shape=shape)
    right = {}
    for text, box in pairs:
        ink, frame = text.get_window_extent(), box.get_window_extent()
        assert ink.x1 <= frame.x1 + 1 and ink.height <= 1.25 * frame.height
        if shape == (1, 1) and len(text.get_text()) > 4:
            assert ink.width > 0.8 * frame.width and text.get_fontsize() >= 8
        assert box.get_x() >= right.get(box.get_y(), 0) - 1e-9
        right[box.get_y()] = box.get_x() + box.get_width()
        assert right[box.get_y()] <= ax.get_xlim()[1] + 1e-6 and box.get_y() + box.get_height() <= max(ax.get_ylim())


def test_a_picture_of_tokens_is_as_tall_as_its_text(draw_tokens=show.draw_tokens):
    """Alone in its figure, one line or fifty, the text has the same size and the lines the same distance."""
    heights = []
    for n in (1, 50):
        fig, _, pairs, _ = drawn(draw_tokens, [QUESTION[:3]] * n, [[True] * 3] * n)
        heights += [box.get_window_extent().height / fig.dpi * 72 / text.get_fontsize() for text, box in pairs]
    assert 1.2 < min(heights) and max(heights) < 1.05 * min(heights)


def test_dollars_are_drawn_as_dollars(draw_tokens=show.draw_tokens, curves=show.curves):
    """Text between two "$" is no formula: it takes as much room as its characters do, in tokens, labels and titles."""
    fig, ax = show.figure()
    curves(ax, {"$a$": ([1, 2], [3, 4]), "$b$": ([1, 2], [4, 3])}, xlabel="$a$", ylabel="$a$", title="$a$")
    for text in (ax.get_legend().get_texts()[0], ax.xaxis.label, ax.title):
        as_it_is = ax.text(1.5, 3.5, "$a$", parse_math=False, fontsize=text.get_fontsize())
        formula = ax.text(1.5, 3.5, "$a$", fontsize=text.get_fontsize())
        fig.draw_without_rendering()
        assert text.get_window_extent().width == pytest.approx(as_it_is.get_window_extent().width, abs=0.1)
        assert formula.get_window_extent().width < 0.7 * text.get_window_extent().width
    ids = TOKENIZER.encode("$a$")
    _, _, pairs, _ = drawn(draw_tokens, [ids], [[0] * len(ids)])
    assert "".join(text.get_text() for text, _ in pairs) == "$a$"
    assert not any(text.get_parse_math() for text, _ in pairs)


def test_characters_that_the_font_lacks_are_drawn_as_codes(drawable=pictures.drawable):
    """No empty boxes (matplotlib would warn): what the font cannot draw appears as its code, all else as it is."""
    assert drawable("naïve ¶ β — 你🙂\n") == "naïve ¶ β — \\u4f60\\U0001f642\n"


def test_lines_break_between_tokens(place=show.place):
    """Nothing is lost or moved, no line is too long, only tokens longer than a line are cut, newlines end lines."""
    rng = random.Random(4)
    for _ in range(300):
        width = rng.randint(3, 12)
        texts = ["".join(rng.choices("abc\n", (3, 3, 3, 1), k=rng.randint(1, 15))) for _ in range(rng.randint(1, 12))]
        places, lines = list(place(texts, width)), {}
        for line, column, text, _ in places:
            assert len(lines.setdefault(line, "")) == column and "\n" not in text
            lines[line] += text
        assert max(map(len, lines.values()), default=0) <= width
        for index, text in enumerate(texts):
            assert "".join(part for *_, part, i in places if i == index) == text.replace("\n", "")
            parts = [part for *_, part, i in places if i == index]
            assert len(parts) == sum(-(-len(piece) // width) for piece in text.split("\n"))
        rows = [line for line, *_ in places]
        assert rows == sorted(rows)
    assert list(place(["ab\n", "\nc"], 9)) == [(0, 0, "ab", 0), (2, 0, "c", 1)]


# ---- source ----


def test_source_is_the_source(source=show.source):
    """str() is what the file holds; the page shows the same lines with their numbers in that file; no absolute path."""
    lines = Path(show.__file__).read_text(encoding="utf-8").split("\n")
    for obj in (show.place, show.Tokens, show):
        shown = source(obj)
        assert str(shown) == inspect.getsource(obj).rstrip("\n")
        text = "".join(text for _, text in Parser(shown._repr_html_()).pieces)
        header = f"minift/show/__init__.py, line {shown.line}"
        assert text.startswith(header)
        numbered = re.findall(r"^ *(\d+)  (.*)$", text.removeprefix(header), re.M)
        assert [line for _, line in numbered] == [lines[int(number) - 1] for number, _ in numbered] == \
            str(shown).split("\n")
    assert str(source(torch.no_grad()(show.place))) == str(source(show.place))
    assert source(Tokenizer.encode).text.startswith("def encode(")
    assert source(Tokenizer.encode).file == "minift/text/tokenizer.py"


@pytest.mark.parametrize("obj", [len, 3, torch.matmul, "text"])
def test_what_has_no_source_is_refused(obj, source=show.source):
    """Built-in functions and plain values have no Python source; the error says what to give instead."""
    with pytest.raises(MiniftError, match="give a function, class or module"):
        source(obj)


# ---- pictures ----


def test_a_curve_holds_its_data(curves=show.curves):
    """The lines on the axes have the x and y that were given, from lists and any tensors; a band has its bounds."""
    _, ax = show.figure()
    x, y = [1, 2, 3], torch.tensor([0.5, 0.25, 2.0], dtype=torch.bfloat16, requires_grad=True)
    curves(ax, {"a": (x, y), "b": (x, [3.0, None, 5.0], [2, 3, 4], [6, 7, 8])}, xlabel="step", ylabel="loss", log=True)
    a, b = ax.get_lines()
    assert a.get_xdata().tolist() == x and a.get_ydata().tolist() == [0.5, 0.25, 2.0]
    assert b.get_ydata()[[0, 2]].tolist() == [3, 5] and np.isnan(b.get_ydata()[1])
    corners = {tuple(corner) for corner in ax.collections[0].get_paths()[0].vertices.tolist()}
    assert corners == {(1, 2), (2, 3), (3, 4), (1, 6), (2, 7), (3, 8)}
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_yscale()) == ("step", "loss", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_curves_differ_in_colour_and_in_style(curves=show.curves):
    """28 curves are 28 different pairs of colour and style; neighbours differ in both, so that print shows it too."""
    _, ax = show.figure()
    curves(ax, {str(i): ([0, 1], [i, i]) for i in range(28)}, xlabel="x", ylabel="y")
    looks = [(line.get_color(), line.get_linestyle()) for line in ax.get_lines()]
    assert len(set(looks)) == 28
    assert all(a[0] != b[0] and a[1] != b[1] for a, b in zip(looks, looks[1:]))


def test_one_point_is_seen(curves=show.curves):
    """A curve of one point has a marker, for a line through one point is invisible."""
    _, ax = show.figure()
    curves(ax, {"a": ([1], [2])}, xlabel="x", ylabel="y")
    assert ax.get_lines()[0].get_marker() == "o"


@pytest.mark.parametrize("parts", [([1, 2], [3]), ([1], [2], [3]), ([1, 2], ["a", "b"]), ([[1]], [[2]])])
def test_a_crooked_curve_is_refused(parts, curves=show.curves):
    """Unequal lengths, three arrays, words and matrices are errors that name the curve."""
    with pytest.raises(MiniftError, match="'loss'"):
        curves(show.figure()[1], {"loss": parts}, xlabel="x", ylabel="y")


def test_bars_hold_their_values_and_intervals(bars=show.bars):
    """Heights are the values; error lines run from low to high, or from value - error to value + error."""
    for errors in ([(0.1, 0.3), (-0.6, -0.4)], [0.1, 0.1]):
        fig, ax = show.figure()
        bars(ax, ["base", "a longer name $1 $2"], [0.2, -0.5], errors, ylabel="score", baseline=0.25)
        assert [patch.get_height() for patch in ax.patches] == [0.2, -0.5]
        assert [segment[:, 1].tolist() for segment in ax.collections[0].get_segments()] == \
            [pytest.approx([0.1, 0.3]), pytest.approx([-0.6, -0.4])]
        assert [text.get_text() for text in ax.texts] == ["0.2", "-0.5"]
        assert [0.25, 0.25] in [list(line.get_ydata()) for line in ax.get_lines()]
        fig.draw_without_rendering()
        names = [label.get_window_extent() for label in ax.get_xticklabels()]
        assert names[0].x1 < names[1].x0
    with pytest.raises(MiniftError, match="2 labels"):
        bars(show.figure()[1], ["a", "b"], [1.0], ylabel="y")


def test_many_long_names_under_bars_do_not_collide(bars=show.bars):
    """Names are broken into lines where words fit under their bars, and slant otherwise."""
    for names in ([f"task number {i}" for i in range(9)], [f"comprehension{i}" for i in range(9)]):
        fig, ax = show.figure()
        bars(ax, names, range(9), ylabel="y")
        fig.draw_without_rendering()
        labels = ax.get_xticklabels()
        if labels[0].get_rotation() == 0:
            boxes = [label.get_window_extent() for label in labels]
            assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:]))
        else:
            assert names[0] == "comprehension0" and [label.get_text() for label in labels] == names


def test_a_reliability_diagram_holds_its_bins(reliability=show.reliability):
    """Points lie at (predicted, observed), a larger count is a larger area, and the diagonal is drawn."""
    _, ax = show.figure()
    reliability(ax, [0.1, 0.5, 0.9], [0.2, 0.4, 0.8], [1, 10, 5])
    points = ax.collections[0]
    assert points.get_offsets().tolist() == [[0.1, 0.2], [0.5, 0.4], [0.9, 0.8]]
    assert points.get_sizes().argsort().tolist() == [0, 2, 1]
    assert ax.get_lines()[0].get_xydata().tolist() == [[0, 0], [1, 1]]
    for bad in (([0.1], [0.2, 0.3], [1]), ([], [], [])):
        with pytest.raises(MiniftError):
            reliability(show.figure()[1], *bad)


def test_an_attention_map_holds_its_weights(attention=show.attention):
    """Row i, column j of the picture is weights[i, j]; the axes name the tokens, with spaces and newlines visible."""
    fig, ax = show.figure()
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.2, 0.3, 0.5]], requires_grad=True)
    attention(ax, weights, ["<user>", " $x$", "\n"])
    assert np.array_equal(ax.images[0].get_array(), weights.detach().double().numpy())
    fig.draw_without_rendering()
    assert ax.images[0].origin == "upper"
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        assert [label.get_text().replace("\\$", "$") for label in labels] == ["<user>", "·$x$", "¶"]
    with pytest.raises(MiniftError, match="2 tokens"):
        attention(show.figure()[1], weights, ["a", "b"])


def test_pictures_are_written_whole(tmp_path, save=show.save):
    """save makes the folder, writes a PNG that can be read again, leaves nothing else, refuses an unknown ending."""
    from matplotlib.image import imread
    fig, ax = show.figure()
    show.curves(ax, {"a": ([0, 1], [0, 1])}, xlabel="x", ylabel="y")
    save(fig, tmp_path / "new" / "a.png")
    image = imread(tmp_path / "new" / "a.png")
    assert image.shape[0] > 300 and image.shape[1] > 500 and image[..., :3].std() > 0.05
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    assert fig._repr_png_()[:4] == b"\x89PNG"
    with pytest.raises(MiniftError, match=".png"):
        save(fig, tmp_path / "a.gif")


def test_importing_show_is_cheap_and_drawing_leaves_pyplot_alone():
    """`import minift.show` loads neither matplotlib nor torch, and a saved picture never loads pyplot."""
    code = ("import sys, minift.show as show; assert not {'matplotlib', 'torch'} & set(sys.modules); "
            "fig, ax = show.figure(); show.bars(ax, ['a'], [1], ylabel='y'); fig._repr_png_(); "
            "assert 'matplotlib.pyplot' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
