"""Pictures for lessons and reports: curves, bars, reliability diagrams and attention maps, drawn with matplotlib.

They use matplotlib's objects, never pyplot: no window, no display, no global state. The colours are those of Okabe and
Ito (2008, "Color Universal Design"), which colour-blind people can distinguish. The lines also differ in style, for
print without colours. Text is drawn as it is: "$" starts no formula. Left out: animation and interaction.
"""

import sys
import textwrap
from functools import cache, partial
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np

from minift.errors import MiniftError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")  # 4 styles and 7 colours make 28 different lines
# A font that comes with matplotlib.
MONO = "DejaVu Sans Mono"


def figure(rows=1, columns=1, *, width=None, height=None):
    """A new figure and its axes: (fig, ax), or (fig, array of axes) for several.

    width, height: of the whole figure, in inches. A notebook shows the figure if it is the last value of a cell; `save`
    writes it to a file.
    """
    from matplotlib.figure import Figure
    size = (width or (6.2 if columns == 1 else 4.6 * columns), height or 3.7 * rows)
    fig = Figure(figsize=size, layout="constrained")
    fig._repr_png_ = partial(image_bytes, fig, "png")
    return fig, fig.subplots(rows, columns)


def image_bytes(fig, kind):
    buffer = BytesIO()
    fig.savefig(buffer, format=kind, dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def save(fig, path):
    """Write a figure atomically. The file name ends in .png, .svg or .pdf; MiniftError for any other ending.

    A figure that pyplot made is closed.
    """
    # Imported here, not above, because core.files imports torch.
    from minift.core.files import write_bytes
    kind = Path(path).suffix[1:].lower()
    if kind not in ("png", "svg", "pdf"):
        raise MiniftError(f"cannot draw {path}: the name of a picture ends in .png, .svg or .pdf")
    write_bytes(path, image_bytes(fig, kind))
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(fig)


def share_legend(fig, axes, columns):
    """Replace the legends in all axes, where they could hide something, by one legend below them."""
    handles = axes[-1].get_legend_handles_labels()
    for ax in axes:
        ax.get_legend().remove()
    fig.legend(*handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=3)


def curves(ax, series, *, xlabel, ylabel, title=None, log=False):
    """Draw one line for each label. series: {label: (x, y) or (x, y, low, high)}; low and high bound a band.

    x, y, low, high: lists or tensors (n,); None and NaN leave a gap. log: a logarithmic y axis. Several curves get a
    legend; a single one needs only the label of the y axis. Raises MiniftError for values that cannot be drawn.
    """
    # Draw each line, and its band if it has one.
    for i, (label, parts) in enumerate(series.items()):
        x, y, *band = arrays = [numbers(part, label) for part in parts]
        if len(arrays) not in (2, 4) or len({array.shape for array in arrays}) > 1 or x.ndim != 1:
            raise MiniftError(
                f"curve {label!r} needs x and y (and perhaps low and high) of one length; "
                f"got shapes {[array.shape for array in arrays]}")
        colour, marker = COLOURS[i % len(COLOURS)], "o" if len(x) <= 12 else None
        ax.plot(
            x, y, color=colour, linestyle=STYLES[i % len(STYLES)], linewidth=1.8, markersize=4, marker=marker,
            label=plain(label))
        if band:
            ax.fill_between(x, *band, color=colour, alpha=0.18, linewidth=0)
    # Put plain numbers on the axes: no powers of ten, and no fractions of a step.
    if log:
        from matplotlib.ticker import LogLocator, NullFormatter
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(alpha=0.25)
    if len(series) > 1:
        ax.legend(frameon=False, handlelength=3)
    places = chain.from_iterable(line.get_xdata() for line in ax.lines)
    whole = all(float(value).is_integer() for value in places)
    if whole and ax.get_xscale() == "linear":
        ax.xaxis.get_major_locator().set_params(integer=True)
    finish(ax, xlabel, ylabel, title)


def bars(ax, labels, values, errors=None, *, ylabel, title=None, baseline=None, baseline_label="chance"):
    """Draw one bar for each label, and write its value beside it. values: (n,).

    errors: half-widths (n,), or the ends (low, high) of each interval (n, 2). baseline: the y value of a dashed line.
    Raises MiniftError for shapes that do not fit.
    """
    # Convert both forms of errors to the ends of intervals.
    values = numbers(values, "values")
    if errors is None:
        errors = np.zeros(len(values))
    errors = numbers(errors, "errors")
    ends = errors if errors.ndim == 2 else np.stack([values - errors, values + errors], 1)  # (n, 2)
    if values.shape != (len(labels),) or ends.shape != (len(labels), 2):
        raise MiniftError(
            f"bars needs a value (and error) for each label; got {len(labels)} labels, values of shape "
            f"{values.shape} and errors of shape {errors.shape}")
    # Draw the bars, their intervals and the baseline.
    places = range(len(values))
    ax.bar(places, values, color=COLOURS[0], width=0.65)
    if errors.any():
        ax.vlines(places, *ends.T, color="black", linewidth=1.2)
        for end in ends.T:
            ax.plot(places, end, "_", color="black", markersize=8)
    if baseline is not None:
        ax.axhline(baseline, color=COLOURS[1], linestyle="--", label=plain(baseline_label))
        ax.legend(frameon=False)
    # Write each number outside its bar.
    for i, value in enumerate(values):
        tip, gap, side = (np.nanmin, -4, "top") if value < 0 else (np.nanmax, 4, "bottom")
        ax.annotate(short(value), (i, tip([*ends[i], 0])), (0, gap), textcoords="offset points", ha="center", va=side)
    name_bars(ax, labels)
    ax.margins(y=0.15)
    ax.axhline(0, color="black", linewidth=0.8)
    finish(ax, None, ylabel, title)


def grouped_bars(ax, labels, series, *, xlabel, title=None):
    """Draw a group of horizontal bars for each label. series: {name: values (n,), or (values, errors)}.

    errors: half-widths (n,). Raises MiniftError for shapes that do not fit.
    """
    height = 0.76 / len(series)
    for i, (name, parts) in enumerate(series.items()):
        values, errors = parts if isinstance(parts, tuple) else (parts, None)
        if len(values) != len(labels):
            raise MiniftError(f"grouped_bars needs a value for each label; {name!r} has {len(values)} of {len(labels)}")
        shift = (i - (len(series) - 1) / 2) * height
        places = [place + shift for place in range(len(labels))]
        ax.barh(places, values, 0.9 * height, xerr=errors, color=COLOURS[i % len(COLOURS)], label=plain(name))
    ax.set_yticks(range(len(labels)), list(map(plain, labels)))
    ax.invert_yaxis()
    if len(series) > 1:
        ax.legend(frameon=False)
    finish(ax, xlabel, None, title)


def name_bars(ax, labels):
    """Write the labels under the bars: on several lines if they fit in this way, else rotated."""
    points = ax.get_window_extent().width / ax.figure.dpi * 72
    # How many letters fit under a bar.
    letters = max(1, int(points / max(len(labels), 1) / 5.7))
    lines = [textwrap.wrap(plain(label), letters, break_long_words=False) for label in labels]
    if all(len(line) <= letters for line in chain.from_iterable(lines)):
        ax.set_xticks(range(len(lines)), ["\n".join(name) for name in lines])
    else:
        ax.set_xticks(range(len(lines)), list(map(plain, labels)), rotation=30, ha="right", rotation_mode="anchor")


def reliability(ax, predicted, observed, counts, *, title=None):
    """A reliability diagram: for each bin, observed frequency against predicted probability; the area shows the count.

    predicted, observed, counts: (bins,) each. The points of a calibrated model lie on the diagonal.
    """
    predicted, observed, counts = (numbers(part, "reliability") for part in (predicted, observed, counts))
    if not predicted.shape == observed.shape == counts.shape or not counts.size:
        raise MiniftError("reliability needs as many values of predicted, observed and counts, at least one")
    ax.plot([0, 1], [0, 1], color="#777777", linestyle="--", linewidth=1.2, label="calibrated", zorder=1)
    ax.scatter(
        predicted, observed, s=20 + 280 * counts / counts.max(), color=COLOURS[0], alpha=0.75,
        label="measured (area: count)", zorder=2)
    ax.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize="small", markerscale=0.5)
    finish(ax, "predicted probability", "observed frequency", title)


def attention(ax, weights, tokens, *, title=None):
    """A heat map of attention weights (T, T): row i is the query token, column j the key token.

    tokens: T strings; a space is shown as a dot.
    """
    weights = numbers(weights, "attention weights")
    if weights.shape != (len(tokens), len(tokens)):
        raise MiniftError(f"{len(tokens)} tokens need as many rows and columns of attention; got {weights.shape}")
    image = ax.imshow(weights, cmap="cividis", vmin=0)
    names = [plain(drawable(visible(token).replace(" ", "·"))) for token in tokens]
    font = {"fontsize": min(9, 260 / max(len(names), 1)), "family": MONO}
    ax.set_xticks(range(len(names)), names, rotation=90, **font)
    ax.set_yticks(range(len(names)), names, **font)
    ax.figure.colorbar(image, ax=ax, label="attention weight", shrink=0.8)
    finish(ax, "looked at", "looking", title)


def confusion(ax, counts, labels, *, title=None):
    """A confusion matrix (L, L): a row for each right label, a column for each predicted label.

    counts: whole numbers, as evaluation.metrics.confusion_matrix gives them; the colour shows each one's share of its
    row. labels: L names.
    """
    counts = numbers(counts, "counts")
    if counts.shape != (len(labels), len(labels)):
        raise MiniftError(f"{len(labels)} labels need as many rows and columns of counts; got {counts.shape}")
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    ax.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            ink = "black" if shares[i, j] > 0.55 else "white"
            ax.text(j, i, f"{count:.0f}", ha="center", va="center", color=ink)
    names = [plain(label) for label in labels]
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    finish(ax, "predicted", "right", title)


# ---- parts ----


def finish(ax, xlabel, ylabel, title):
    """Set the labels and the title, with "$" as it is, and remove the lines above and to the right."""
    ax.set(xlabel=plain(xlabel or ""), ylabel=plain(ylabel or ""))
    ax.set_title(plain(title or ""), fontsize=11)
    ax.spines[["top", "right"]].set_visible(False)


def numbers(values, what):
    """An array of floats from a list (None becomes NaN), an array or a tensor of any device and type."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float().numpy()
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise MiniftError(f"cannot draw {what!r}: expected numbers ({error})") from error


def short(value):
    """A number in about three digits."""
    if np.isnan(value):
        return "none"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plain(text):
    """Text that matplotlib draws as it is: a pair of "$" would otherwise enclose a formula."""
    return str(text).replace("$", r"\$")


def visible(text):
    """The text on one line: a newline becomes ¶, each other character that cannot be seen its code (\\t, \\u200b)."""
    shown = (c if c.isprintable() or c == "\n" else code(c) for c in str(text))
    return "".join(shown).replace("\n", "¶")


def code(character):
    return character.encode("unicode_escape").decode()


@cache
def glyphs():
    """The code points of the characters that MONO can draw."""
    from matplotlib import font_manager
    font = font_manager.get_font(font_manager.findfont(MONO))
    return frozenset(font.get_charmap())


def drawable(text):
    """The text with the characters that the font lacks replaced by their codes (\\u4f60), not by empty boxes."""
    return "".join(c if ord(c) in glyphs() or c == "\n" else code(c) for c in text)
