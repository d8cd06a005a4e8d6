"""The whole tour in one picture: a box for each stage, with what it changed.

The README's picture shows the committed means over seeds:
python -c "from minift.tour.arc import draw_means; draw_means('data/tour/seeds.json', 'data/tour/arc.png')"
"""

from minift.core.files import read_json
from minift.show import figure, save

# Stage -> the box: its place (column, row), its title, and what it shows of the measures. {x:.0%} is filled in.
BOXES = {
    "text": ((0, 0), "Text of a toy world", "stories, dialogues,\nquizzes"),
    "encoder": (
        (1, 0), "Encoder (BERT)", "hidden tokens found: {masked_accuracy:.0%}\n(by a bigram: {bigram_accuracy:.0%})"),
    "classifier": (
        (2, 0), "Classifier", "frozen encoder, 16 labels:\n{probe_accuracy_16:.0%} of the topics right"),
    "base": ((0, 1), "Pre-training", "unread stories,\nperplexity {base_perplexity:.2f}"),
    "continued": (
        (1, 1), "Continued pre-training",
        "new domain, perplexity\n{new_perplexity_before:,.0f} → {new_perplexity:.2f}"),
    "lora": ((2, 1), "LoRA", "{lora_share_trained:.0%} of the parameters,\n{lora_share_of_gain:.0%} of the gain"),
    "sft": ((1, 2), "Instruction tuning (SFT)", "exact answers:\n{exact_match_before:.0%} → {exact_match:.0%}"),
    "preferences": ((2, 2), "Preferences", "annotators agree with\nthe gold order: {annotator_agreement:.0%}"),
    "reward": ((3, 2), "Reward model", "held-out pairs\nin gold order: {reward_accuracy_gold:.0%}"),
    "clusters": (
        (1, 3), "Withheld task cluster",
        "tuned on all others, exact:\n{withheld_exact_match_before:.0%} → {withheld_exact_match_after:.0%}"),
    "dpo": ((2, 3), "DPO", "wins against SFT:\n{win_rate_dpo:.0%}"),
    "ppo": ((3, 3), "PPO", "wins against SFT:\n{win_rate_ppo:.0%}")}
# Which stage needs the result of which.
ARROWS = [
    ("text", "encoder"), ("encoder", "classifier"), ("text", "base"), ("base", "continued"), ("continued", "lora"),
    ("base", "sft"), ("base", "clusters"), ("sft", "preferences"), ("preferences", "reward"), ("preferences", "dpo"),
    ("reward", "ppo")]
COLOURS = {
    "text": "#1a202c", "encoder": "#6b46c1", "classifier": "#6b46c1", "base": "#4a5568", "continued": "#4a5568",
    "lora": "#4a5568", "sft": "#00694d", "clusters": "#00694d", "preferences": "#975a16", "reward": "#975a16",
    "dpo": "#c05621", "ppo": "#c05621"}
WIDTH, HEIGHT, STEP_X, STEP_Y = 2.3, 1.05, 2.8, 1.5


def describe(name, measures):
    """What a box says below its title; None when the tour has not measured it."""
    try:
        return BOXES[name][2].format(**measures)
    except KeyError:
        return None


def draw_arc(path, measures):
    """Draw the boxes and arrows of the tour into the file `path`. measures: name -> number, of the stages that ran."""
    fig, axis = figure(width=11, height=5.7)
    axis.set_axis_off()
    axis.set(xlim=(-0.05, 3 * STEP_X + WIDTH + 0.05), ylim=(-3 * STEP_Y - 0.05, HEIGHT + 0.05))
    for start, end in ARROWS:
        draw_arrow(axis, start, end)
    for name in BOXES:
        draw_box(axis, name, describe(name, measures))
    save(fig, path)


def corner(name):
    """The lower left corner of a box."""
    (column, row), _, _ = BOXES[name]
    return column * STEP_X, -row * STEP_Y


def draw_box(axis, name, text):
    """A filled box with the stage's name, and below it what was measured."""
    from matplotlib.patches import FancyBboxPatch
    x, y = corner(name)
    axis.add_patch(
        FancyBboxPatch(
            (x, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=COLOURS[name], edgecolor="none"))
    style = {"ha": "center", "va": "center", "color": "white"}
    axis.text(x + WIDTH / 2, y + 0.78 * HEIGHT, BOXES[name][1], fontsize=11, weight="bold", **style)
    axis.text(x + WIDTH / 2, y + 0.34 * HEIGHT, text or "not measured", fontsize=10.5, linespacing=1.35, **style)


def draw_arrow(axis, start, end):
    """From one box to the next: to the right, down, or down and then to the right."""
    (x, y), (to_x, to_y) = corner(start), corner(end)
    style = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.6, "shrinkA": 0, "shrinkB": 2}
    tail = (x + WIDTH, y + HEIGHT / 2) if y == to_y else (x + WIDTH / 2, y)
    head = (to_x + WIDTH / 2, to_y + HEIGHT) if x == to_x else (to_x, to_y + HEIGHT / 2)
    if x != to_x and y != to_y:
        style["connectionstyle"] = "angle,angleA=-90,angleB=180,rad=6"
    axis.annotate("", xy=head, xytext=tail, arrowprops=style)


def draw_means(source, path):
    """Draw the means over seeds that a file like data/tour/seeds.json holds."""
    summary = read_json(source)["summary"]
    draw_arc(path, {name: numbers["mean"] for name, numbers in summary.items()})
