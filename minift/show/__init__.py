"""What the lessons and the tour display: source code, tokens coloured by what is learned, and pictures.

Left out: syntax colouring.
"""

import inspect
import os
import textwrap
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from minift.errors import MiniftError
from minift.show.pictures import (
    MONO,
    attention,
    bars,
    confusion,
    curves,
    drawable,
    figure,
    grouped_bars,
    plain,
    reliability,
    save,
    share_legend,
    visible,
)

__all__ = [
    "Source", "Tokens", "attention", "bars", "confusion", "curves", "draw_tokens", "figure", "grouped_bars",
    "reliability", "save", "share_legend", "source", "visible"]

# Learned tokens are bold green, others grey.
ANSI = {True: "\x1b[1;32m", False: "\x1b[90m"}
# HTML tags that show the state even where a viewer ignores styles.
TAGS = {"learned": "b", "not learned": "span", "padding": "s"}
CSS = {"learned": "background: #00694d; color: #fff", "not learned": "opacity: 0.75", "padding": "opacity: 0.45"}
BOXES = {
    "learned": {"facecolor": "#00694d", "edgecolor": "white"},
    "not learned": {"facecolor": "#dedede", "edgecolor": "white"},
    "padding": {"facecolor": "white", "edgecolor": "#999999", "linestyle": ":"}}
FONTS = {
    "learned": {"color": "white", "weight": "bold"},
    "not learned": {"color": "#222222"},
    "padding": {"color": "#808080"}}
# The width of one character of MONO, as a multiple of the font size.
MONO_WIDTH = 0.602


# ---- source code ----


@dataclass(frozen=True)
class Source:
    """Source code and its place; `print` it, or let a notebook show it with line numbers."""

    text: str
    file: str
    # Number of the first line.
    line: int

    def __str__(self):
        return self.text

    __repr__ = __str__

    def _repr_html_(self):
        lines = "\n".join(
            f'<span style="opacity: 0.5; user-select: none">{number:4d}  </span>{escape(line)}'
            for number, line in enumerate(self.text.split("\n"), self.line))
        return (
            f"<div><small>{escape(self.file)}, line {self.line}</small>"
            f'<pre style="white-space: pre; overflow-x: auto">{lines}</pre></div>')


def source(obj):
    """The source of a function, class or module, as a Source. Raises MiniftError if there is none to show."""
    try:
        lines, first = inspect.getsourcelines(obj)
        file = Path(inspect.getsourcefile(inspect.unwrap(obj)))
        module = inspect.getmodule(obj)
    except (OSError, TypeError) as error:
        raise MiniftError(f"there is no Python source to show for {obj!r}; give a function, class or module") from error
    # Show the part of the path that belongs to the package.
    depth = module.__name__.count(".") + 1 if module else 1
    if file.stem == "__init__":
        depth += 1
    text = textwrap.dedent("".join(lines))
    return Source(text.rstrip("\n"), "/".join(file.parts[-depth:]), max(first, 1))


# ---- tokens ----


class Tokens:
    """One sequence with its mask, to see before training which tokens are learned.

    input_ids, mask: (T,), lists or tensors. `print` shows learned tokens in bold green and the others in grey. If the
    environment sets NO_COLOR, learned text is put in «guillemets» instead. A notebook also shows the tokens' borders.
    """

    def __init__(self, tokenizer, input_ids, mask):
        self.tokens = marked(tokenizer, input_ids, mask)

    def __str__(self):
        runs = [
            (learned, readable(b"".join(data for data, _ in run)))
            for learned, run in groupby(self.tokens, key=lambda token: token[1] == "learned")]
        if os.environ.get("NO_COLOR"):
            return "".join(f"«{text}»" if learned else text for learned, text in runs)
        return "".join(f"{ANSI[learned]}{text}\x1b[0m" for learned, text in runs)

    __repr__ = __str__

    def _repr_html_(self):
        spans = "".join(
            f'<{TAGS[state]} title="{state}" style="text-decoration: none; outline: 1px solid #8886; '
            f'{CSS[state]}">{escape(readable(data))}</{TAGS[state]}>' for data, state in self.tokens)
        return f'<pre style="white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6">{spans}</pre>'


def draw_tokens(ax, tokenizer, rows, masks, width=90, title=None):
    """Draw sequences as lines of boxes: one box for each token, coloured by whether the token is learned.

    rows, masks: sequences of any lengths, each (T,). An id that is pad_id and not learned counts as padding. width:
    characters in a line. A figure with no other axes gets the height that the text needs, and the width too if it is
    too narrow to read. Raises MiniftError for bad masks.
    """
    if not len(rows) or len(rows) != len(masks):
        raise MiniftError(f"draw_tokens needs a mask for each sequence; got {len(rows)} sequences, {len(masks)} masks")
    # Place the tokens of each sequence on lines, below the sequence before it.
    boxes, top = [], 0
    for row, mask in zip(rows, masks, strict=True):
        tokens = marked(tokenizer, row, mask)
        texts = [drawable(readable(data)) for data, _ in tokens]
        places = list(place(texts, width))
        boxes += [(top + line, column, text, tokens[index][1]) for line, column, text, index in places]
        top += 1.5 + max((line for line, *_ in places), default=0)
    # Draw the legend first, because it takes room from the axes.
    from matplotlib.patches import Patch, Rectangle
    handles = [Patch(label=state, **box) for state, box in BOXES.items()]
    ax.legend(
        handles=handles, loc="lower left", ncols=3, bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2,
        title=plain(title or ""), alignment="left")
    # Draw the boxes in a font that fits.
    size = fit(ax, width, top)
    for line, column, text, state in boxes:
        ax.add_patch(Rectangle((column, line + 0.08), len(text), 0.84, linewidth=0.8, **BOXES[state]))
        ax.text(
            column, line + 0.66, text, fontsize=size, family=MONO, in_layout=False, parse_math=False, **FONTS[state])


def marked(tokenizer, input_ids, mask):
    """Each token of one sequence as (bytes, state); the states are the keys of BOXES."""
    ids, mask = flat(input_ids, "input_ids"), flat(mask, "the mask")
    if len(ids) != len(mask):
        raise MiniftError(
            f"the mask has {len(mask)} values for {len(ids)} tokens; give one for each "
            "(a mask cut to [:, 1:] belongs to input_ids[:, 1:])")
    if any(value not in (0, 1) for value in mask):
        raise MiniftError("a mask holds True and False only; for labels, give labels != -100")
    pad_id = tokenizer.pad_id if "<pad>" in tokenizer.special else None
    tokens = []
    for i, learned in zip(ids, mask):
        not_learned = "padding" if i == pad_id else "not learned"
        state = "learned" if learned else not_learned
        tokens.append((tokenizer.token_bytes(int(i)), state))
    return tokens


def flat(values, what):
    """One sequence as a list, from a list or a tensor."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(values, (list, tuple)) or any(isinstance(value, (list, tuple)) for value in values):
        raise MiniftError(f"{what} must be one sequence of numbers, such as a list or input_ids[0]")
    return list(values)


def readable(data):
    """The text of tokens' bytes: ¶ marks a newline, and incomplete characters appear as their bytes (\\xe2\\x82)."""
    text = data.decode("utf-8", errors="backslashreplace")
    return "¶\n".join(visible(line) for line in text.split("\n"))


def place(texts, width):
    """Yield (line, column, text, index of the token) for tokens on lines of `width` characters.

    A token that does not fit goes to the next line. A token that is longer than a line is cut. A newline ends its line.
    """
    line = column = 0
    for index, text in enumerate(texts):
        for part in text.splitlines(keepends=True):
            shown = part.rstrip("\n")
            while shown:
                if column and column + len(shown) > width:
                    line, column = line + 1, 0
                yield line, column, shown[:width], index
                column += len(shown[:width])
                shown = shown[width:]
            if part.endswith("\n"):
                line, column = line + 1, 0


def fit(ax, width, n_lines, smallest=8.5, largest=13):
    """Set the axes to n_lines of `width` characters; return the font size in points at which the text fits its boxes.

    smallest, largest: font sizes in points.
    """
    ax.axis("off")
    fig, alone = ax.figure, len(ax.figure.axes) == 1
    if alone:
        fig.set_figwidth(max(fig.get_figwidth(), (width * MONO_WIDTH * smallest + 20) / 72))
    # Lay the axes out, so that their size is known.
    fig.draw_without_rendering()
    # The size of the axes in points.
    across, down = ax.get_window_extent().size / fig.dpi * 72
    size = min(largest, across / (width * MONO_WIDTH))
    if alone:
        fig.set_figheight(fig.get_figheight() + (1.8 * size * n_lines - down) / 72)
    else:
        size = min(size, down / (1.5 * n_lines))
    ax.set(xlim=(0, across / (size * MONO_WIDTH)), ylim=(n_lines, 0))
    return size
