"""Stages 1 to 3: the base, continued pre-training with and without replay, LoRA against full fine-tuning."""

import time

import torch

from minift.core.generate import generate
from minift.core.train import train
from minift.evaluation.metrics import perplexity
from minift.formats.adapter import save_adapter
from minift.formats.checkpoint import save_model
from minift.methods import lora
from minift.methods.pretrain import make_pretrain_loss, replay
from minift.text.batches import Windows
from minift.tour import draw
from minift.tour.common import Result, change
from minift.world.corpus import documents, stories
from minift.world.domains import domain_texts
from minift.world.recipes import join, text_loss

DOMAIN = "notices"


def base(tour):
    """1. What the pretrained decoder writes, and how well it predicts stories that it has not read."""
    model, tokenizer = tour.load("base")
    held_out = stories(tour.settings.n_valid, tour.seed, "test")
    measured = perplexity(text_loss(model, tokenizer, held_out), 1)
    prompt = torch.tensor([tokenizer.encode("One sunny morning")] * 3)
    generator = torch.Generator().manual_seed(tour.seed)
    out = generate(model, prompt, max_new_tokens=90, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id,
                   generator=generator)
    samples = [tokenizer.decode(ids[mask], skip_special=True) for ids, mask in zip(out.input_ids, out.attention_mask)]
    draw.draw_base(tour)
    n = sum(p.numel() for p in model.parameters())
    return Result(
        f"The pretrained base ({n:,} parameters) predicts unread stories at a perplexity of {measured:.2f}.",
        {"base_perplexity": measured},
        change("perplexity of stories (before: V)", tokenizer.vocab_size, measured),
        texts=[(f"sample {i + 1}", text) for i, text in enumerate(samples)],
        pictures=[tour.picture("base")])


def windows_of(tour, tokenizer, texts):
    """Batches of windows, each as long as the context, over the joined texts."""
    return Windows(join(tokenizer, texts), 256, tour.settings.window_batch, tour.seed)


def adapt(tour, model, tokenizer, windows, lr, name):
    """Train the model on windows. Returns rows {"step", "new_loss", "old_loss", ...}: losses in nats per token."""
    valid = {
        "new": domain_texts(DOMAIN, tour.settings.n_valid, tour.seed, "test"),
        "old": stories(tour.settings.n_valid, tour.seed, "test")}

    def losses():
        return {f"{key}_loss": text_loss(model, tokenizer, texts) for key, texts in valid.items()}

    first = {"step": 0, **losses()}
    steps = tour.settings.domain_steps
    history = train(
        model, windows, make_pretrain_loss(model), steps=steps, lr=lr, evaluate=losses,
        eval_every=max(1, steps // 6), name=name)
    return [first] + [row for row in history if "new_loss" in row]


def continued(tour):
    """2. Continued pre-training on the notice board, all parameters, without and with replay of old documents."""
    s = tour.settings
    # Train twice from the same base: on new text only, and with old text mixed in.
    runs = {}
    for name in ("plain", "replay"):
        torch.manual_seed(tour.seed)
        model, tokenizer = tour.load("base")
        windows = windows_of(tour, tokenizer, domain_texts(DOMAIN, s.n_domain, tour.seed))
        if name == "replay":
            old = windows_of(tour, tokenizer, documents(s.n_domain, f"replay/{tour.seed}"))
            windows = replay(windows, old, s.replay_share, tour.seed)
        runs[name] = adapt(tour, model, tokenizer, windows, s.domain_lr, f"continued, {name}")
        save_model(model, tokenizer, tour.out / f"continued-{name}")
    # Measure both domains before and after.
    (first, *_, last), replayed = runs["plain"], runs["replay"][-1]
    rows = [
        {"run": name, "new domain": perplexity(row["new_loss"], 1), "old domain": perplexity(row["old_loss"], 1)}
        for name, row in (("before", first), ("new text only", last), ("with replay", replayed))]
    before, plain, with_replay = rows
    rise = last["old_loss"] - first["old_loss"]
    measures = {
        "new_perplexity_before": before["new domain"], "new_perplexity": plain["new domain"],
        "old_perplexity_before": before["old domain"], "old_perplexity": plain["old domain"],
        "old_perplexity_with_replay": with_replay["old domain"],
        "new_perplexity_with_replay": with_replay["new domain"],
        "forgetting_with_replay": (replayed["old_loss"] - first["old_loss"]) / rise,
        "new_loss_before": first["new_loss"], "new_loss": last["new_loss"]}
    draw.draw_continued(tour, runs["plain"], runs["replay"])
    # Report what was learned, and what was forgotten without and with replay.
    return Result(
        f"Reading only notices, the model learns them (perplexity {measures['new_perplexity_before']:.0f} to "
        f"{measures['new_perplexity']:.1f}) and forgets stories ({measures['old_perplexity_before']:.1f} to "
        f"{measures['old_perplexity']:.1f}); with replay the stories' loss rises by "
        f"{measures['forgetting_with_replay']:.0%} of that.",
        measures,
        change("perplexity, new domain", before["new domain"], plain["new domain"]),
        rows=rows,
        pictures=[tour.picture("continued")])


def low_rank(tour):
    """3. LoRA on the same domain and steps: its share of full fine-tuning's gain and of the parameters; merging."""
    # Load the base.
    s = tour.settings
    torch.manual_seed(tour.seed)
    model, tokenizer = tour.load("base")
    n_all = sum(p.numel() for p in model.parameters())
    # Add the adapters and train only them, on the text that full fine-tuning saw.
    lora.add_lora(model, s.lora_rank, 2 * s.lora_rank)
    n_lora = sum(p.numel() for p in model.parameters() if p.requires_grad)
    windows = windows_of(tour, tokenizer, domain_texts(DOMAIN, s.n_domain, tour.seed))
    run = adapt(tour, model, tokenizer, windows, s.lora_lr, "lora")
    full = tour.results["continued"].measures
    save_adapter(model, tour.out / "lora-adapter", base=str(tour.base))
    # Merge, and compare the logits and the speed.
    model.eval()
    ids = windows.batch([0])["input_ids"]
    with torch.no_grad():
        apart = model(ids)  # (B, T, V)
        lora.merge_lora(model)
        difference = ((model(ids) - apart).abs().max() / apart.abs().max()).item()
    save_model(model, tokenizer, tour.out / "lora-merged")
    speed = speed_ratio(tour.load("lora-merged")[0], tour.load("base")[0], tokenizer)
    # Compare the sizes and the gain with those of full fine-tuning.
    adapter = tour.out / "lora-adapter" / "adapter_model.safetensors"
    adapter_bytes = adapter.stat().st_size
    gain = (run[0]["new_loss"] - run[-1]["new_loss"]) / (full["new_loss_before"] - full["new_loss"])
    measures = {
        "lora_share_trained": n_lora / n_all, "lora_share_of_gain": gain,
        "lora_adapter_kilobytes": adapter_bytes / 1000, "lora_training_megabytes": 12 * n_lora / 1e6,
        "full_training_megabytes": 12 * n_all / 1e6, "lora_merge_difference": difference,
        "lora_merged_time_ratio": speed, "lora_old_perplexity": perplexity(run[-1]["old_loss"], 1)}
    draw.draw_lora(tour, measures, run[-1]["new_loss"], full)
    return Result(
        f"LoRA trains {n_lora / n_all:.1%} of the parameters and gets {gain:.0%} of full fine-tuning's gain; merged, "
        f"its logits differ by {difference:.0e} of the largest and it generates in {speed:.2f} times the base's time.",
        measures,
        change("share of the full gain", 0.0, gain),
        rows=[
            {"method": "full", "trained": n_all, "saved (kB)": 4 * n_all / 1000, "loss, new domain": full["new_loss"]},
            {"method": "LoRA", "trained": n_lora, "saved (kB)": adapter_bytes / 1000,
             "loss, new domain": run[-1]["new_loss"]}],
        pictures=[tour.picture("lora")])


def speed_ratio(model, other, tokenizer, repeats=7):
    """The median time of generation with `model`, divided by that with `other`."""
    prompt = torch.tensor([tokenizer.encode("One sunny morning")] * 8)
    times = ([], [])
    # The models take turns, and each is as often the first as the second.
    for turn in range(2 * repeats):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            generate((model, other)[which], prompt, max_new_tokens=24, eos_id=None, pad_id=tokenizer.pad_id)
            times[which].append(time.perf_counter() - start)
    return sorted(times[0])[repeats] / sorted(times[1])[repeats]
