"""The pictures of the tour's stages, one function a stage; each writes a file into the run's folder."""

from minift import show
from minift.evaluation.metrics import perplexity
from minift.studies.label_curve import log_labels
from minift.text.chat import encode_chat
from minift.text.jsonl import read_jsonl
from minift.tour.common import smooth


def points(rows, key, x="step"):
    """(x values, y values) of the rows that have the key: a curve for show.curves."""
    rows = [row for row in rows if key in row]
    return [row[x] for row in rows], [row[key] for row in rows]


def draw_base(tour):
    """Draw the losses of the base's pre-training, from the log that comes with it."""
    log = read_jsonl(tour.base / "log.jsonl")
    series = {"training loss": points(log, "loss"), "held-out stories": points(log, "valid_stories_loss")}
    fig, axes = show.figure()
    show.curves(
        axes, series, xlabel="step of pre-training", ylabel="loss (nats per token)",
        title="How the base was made")
    show.save(fig, tour.picture("base"))


def draw_continued(tour, plain, with_replay):
    """Draw the perplexity of both domains over the steps, without and with replay."""
    runs = {"new text only": plain, f"{tour.settings.replay_share:.0%} old text replayed": with_replay}
    fig, axes = show.figure(1, 2)
    for axis, key, title in zip(axes, ("new", "old"), ("new domain: notices", "old domain: stories")):
        series = {}
        for label, run in runs.items():
            steps, losses = points(run, f"{key}_loss")
            series[label] = steps, [perplexity(loss, 1) for loss in losses]
        show.curves(axis, series, xlabel="step", ylabel="perplexity (held-out)", title=title, log=True)
    show.save(fig, tour.picture("continued"))


def draw_lora(tour, measures, lora_loss, full):
    """Draw the losses of LoRA and full fine-tuning, and the memory of their training in addition to the weights."""
    losses = [full["new_loss_before"], lora_loss, full["new_loss"]]
    memory = [measures["lora_training_megabytes"], measures["full_training_megabytes"]]
    fig, axes = show.figure(1, 2)
    show.bars(axes[0], ["base", "LoRA", "full"], losses, ylabel="loss on the new domain (nats per token)")
    show.bars(axes[1], ["LoRA", "full"], memory, ylabel="gradients and AdamW's state (MB)")
    show.save(fig, tour.picture("lora"))


def draw_sft(tour, tokenizer, rows, history):
    """Draw a batch with its loss mask, and the curve of the loss: two files."""
    fig, axes = show.figure(width=11, height=7)
    chats = [encode_chat(tokenizer, row["messages"]) for row in rows[5:10]]
    show.draw_tokens(axes, tokenizer, [ids for ids, _ in chats], [mask for _, mask in chats])
    show.save(fig, tour.picture("sft-mask"))
    fig, axes = show.figure()
    show.curves(
        axes, {"training loss": smooth(history, "loss")}, xlabel="step",
        ylabel="loss on response tokens (nats a token, mean of 8 steps)", title="Instruction tuning")
    show.save(fig, tour.picture("sft"))


def draw_preferences(tour, gaps):
    """Draw how often each difference of gold scores (chosen minus rejected story) occurs."""
    whole = [round(gap) for gap in gaps]
    scale = range(min(whole), max(whole) + 1)
    fig, axes = show.figure()
    show.bars(
        axes, [f"{gap:+d}" for gap in scale], [whole.count(gap) for gap in scale], ylabel="pairs",
        title="Gold score of the chosen story minus that of the rejected one (points)")
    show.save(fig, tour.picture("preferences"))


def draw_reward(tour, history, curve):
    """Draw the reward model's loss and its reliability diagram."""
    fig, axes = show.figure(1, 2)
    show.curves(
        axes[0], {"training loss": smooth(history, "loss")}, xlabel="step",
        ylabel="Bradley-Terry loss (nats a pair, mean of 8 steps)", title="Reward model")
    columns = ([point[key] for point in curve] for key in ("confidence", "accuracy", "count"))
    show.reliability(axes[1], *columns)
    show.save(fig, tour.picture("reward"))


def draw_ppo(tour, rows):
    """Draw eight curves of PPO: scores, KL, and the state of the optimization."""
    labels = {
        "gold": "gold score (0 to 10)", "score": "learned score", "kl": "KL to SFT (nats a response)",
        "entropy": "entropy (nats a token)", "response_length": "response length (tokens)",
        "clip_fraction": "clip fraction", "explained_variance": "explained variance",
        "eos_share": "ended by <eos>"}
    fig, axes = show.figure(2, 4)
    for axis, (key, label) in zip(axes.flat, labels.items()):
        show.curves(axis, {label: points(rows, key, "iteration")}, xlabel="iteration", ylabel=label)
    show.save(fig, tour.picture("ppo"))


def draw_dpo(tour, history, seen):
    """Draw DPO's loss, margin and log-probabilities during training, and the scores of its samples."""
    panels = [
        ("DPO loss (nats, mean of 8 steps)", {"loss": smooth(history, "loss")}),
        ("margin of implicit rewards (nats)", {"margin": smooth(history, "margin")}),
        ("log p of the response (nats)", {"chosen": smooth(history, "chosen_logprobs"),
                                          "rejected": smooth(history, "rejected_logprobs")}),
        ("sampled stories", {"gold score": points(seen, "gold"), "KL (nats)": points(seen, "kl")})]
    fig, axes = show.figure(1, 4)
    for axis, (label, series) in zip(axes, panels):
        show.curves(axis, series, xlabel="step", ylabel=label)
    show.save(fig, tour.picture("dpo"))


def draw_comparison(tour, rows):
    """Draw the gold scores of all models with their intervals, and the KL of the tuned ones to SFT."""
    def bars(axis, rows, key, label, ends=None):
        show.bars(axis, [row["model"] for row in rows], [row[key] for row in rows], ends, ylabel=label)

    fig, axes = show.figure(1, 2)
    ends = [(row["95 % from"], row["to"]) for row in rows]
    bars(axes[0], rows, "gold score", "gold score, 95 % interval", ends)
    tuned = [row for row in rows if row["model"] != "base"]
    bars(axes[1], tuned, "KL to SFT (nats)", "KL to SFT (nats a response)")
    show.save(fig, tour.picture("comparison"))


def draw_blanks(tour, tokenizer, rows, masks):
    """Draw some stories with the encoder's guesses for hidden words. The hidden words are marked as learned."""
    fig, axes = show.figure(width=11, height=5)
    show.draw_tokens(axes, tokenizer, rows, masks, title="Hidden words, learned: what stands there is the guess")
    show.save(fig, tour.picture("encoder-blanks"))


def draw_encoder(tour, curve, counts, labels):
    """Draw accuracy against the number of labels for four ways, and the confusion matrix of the probe."""
    sizes = tour.settings.label_sizes
    series = {way: (list(found), list(found.values())) for way, found in curve.items()}
    fig, axes = show.figure(1, 2, width=11, height=4.4)
    show.curves(
        axes[0], series, xlabel="labelled stories (log axis)", ylabel="accuracy (held-out stories)",
        title="What went wrong?")
    log_labels(axes[0], sizes)
    show.confusion(axes[1], counts, labels, title=f"the probe with {sizes[1]} labels")
    show.save(fig, tour.picture("encoder"))


def draw_verifiable(tour, history, rows):
    """Draw GRPO's reward and the share of groups that teach nothing; exact match of each task, before and after."""
    fig, (left, right) = show.figure(1, 2, width=11, height=4)
    show.curves(
        left, {"right answers": points(history, "score", "iteration"),
               "groups without variance": points(history, "equal_groups", "iteration")},
        xlabel="iteration", ylabel="share", title="GRPO with exact match as the reward")
    show.grouped_bars(
        right, [row["task"].replace("_", " ") for row in rows],
        {when: [row[when] for row in rows] for when in ("before", "after")}, xlabel="exact match, held-out rows")
    show.save(fig, tour.picture("verifiable"))
