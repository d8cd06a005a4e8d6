"""How fast minift is, as ratios measured side by side in one run: `python -m tests.bench` (about a minute).

How near training comes to the machine's own matrix products, for decoder and encoder; what a frozen encoder's cached
features save, and what the KV cache; and where the time of a PPO iteration goes. Figures depend on the machine;
the ratios are what to compare.
"""

import argparse
import copy
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch

from minift.core.generate import generate
from minift.core.heads import LanguageModel, MaskedLanguageModel, SequenceClassifier, TokenScorer
from minift.core.logprobs import make_reference
from minift.core.step import make_optimizer
from minift.core.train import take_step
from minift.core.transformer import TransformerConfig
from minift.evaluation.baselines import labelled_batches
from minift.formats.checkpoint import load_model
from minift.methods.classify import Rows, cached_features, freeze, make_classification_loss
from minift.methods.mlm import make_mlm_loss, mask_tokens
from minift.methods.ppo_loop import PPOConfig, train_ppo
from minift.methods.pretrain import make_pretrain_loss
from minift.methods.reward import reward_from_model
from minift.text.chat import encode_prompt
from minift.text.segments import encode_labelled
from minift.world.instructions import story_requests
from minift.world.labelled import LABELS, labelled
from minift.world.recipes import ENCODER

BASE = Path("data/base")


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def multiply_adds(config, length, learned=1.0):
    """Multiply-adds of a training step, per token: a matrix once forward, twice backward; a causal token sees T/2 keys.

    learned: the share of tokens at which the head is computed.
    """
    d, f, kv = config.d_model, config.d_ff, config.n_kv_head * config.d_head
    mlp, seen = (3 if config.mlp == "swiglu" else 2) * d * f, length / 2 if config.causal else length
    head = d * config.vocab_size + (0 if config.causal else d * d)
    return 3 * (config.n_layer * (2 * d * d + 2 * d * kv + mlp + 2 * d * seen) + learned * head)


def against_gemm(name, model, loss_fn, batch, learned=1.0, repeats=7):
    """Multiply-adds a second of forward and backward, over those of a matrix product on the same machine, in turn."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    tokens, length = batch["input_ids"].numel(), batch["input_ids"].shape[1]
    optimizer, rows = make_optimizer(model, lr=1e-4), []
    for _ in range(repeats + 1):
        gemm = 2048**3 / min(seconds(lambda: a @ b) for _ in range(3))
        rate = tokens * multiply_adds(model.config, length, learned) / seconds(lambda: loss_fn(batch)[0].backward())
        step = seconds(lambda: take_step(optimizer, [batch], loss_fn, lr=1e-4))
        rows.append((gemm, rate / gemm, tokens / step))
    gemm, ratio, speed = (statistics.median(column) for column in zip(*rows[1:]))       # the first only warms up
    return {f"{name}: matrix product, multiply-adds (1e9/s)": gemm / 1e9,
            f"{name}: forward and backward over matrix product": ratio,
            f"{name}: training tokens/s (whole step)": speed}


def decoder(length=256, batch_size=8):
    """Next-token training of a decoder of 3.7M parameters."""
    config = TransformerConfig(vocab_size=2048, context_length=length, n_layer=4, n_head=4, d_model=256, d_ff=688)
    torch.manual_seed(0)
    model = LanguageModel(config)
    batch = {"input_ids": torch.randint(0, config.vocab_size, (batch_size, length))}
    return against_gemm("decoder", model, make_pretrain_loss(model), batch)


def encoder(length=256, batch_size=8):
    """Masked training of an encoder of 3.9M parameters, 15 % of the tokens hidden."""
    shape = {**ENCODER["config"], "context_length": length, "d_model": 256, "d_ff": 1024}
    torch.manual_seed(0)
    model = MaskedLanguageModel(TransformerConfig(vocab_size=2048, **shape))
    ids = torch.randint(10, model.config.vocab_size, (batch_size, length))
    masked, labels = mask_tokens(ids, torch.zeros_like(ids, dtype=torch.bool), mask_id=1, vocab_size=2048)
    return against_gemm("encoder", model, make_mlm_loss(model), {"input_ids": masked, "labels": labels}, learned=0.15)


def probe(n=512, epochs=20):
    """Time of training a frozen encoder's head when each step computes the features anew, over that with a cache."""
    model, tokenizer = load_model("data/encoder")
    classifier = freeze(SequenceClassifier(model.body, 2, labels=LABELS["sentiment"]))
    rows = encode_labelled(tokenizer, labelled("sentiment", n, 0, "bench"), LABELS["sentiment"], 256)
    batches, loss_fn = labelled_batches(rows, tokenizer.pad_id), make_classification_loss(classifier)
    optimizer = make_optimizer(classifier, lr=1e-3)

    def epoch(source):
        for batch in source:
            take_step(optimizer, [batch], loss_fn, lr=1e-3)

    start = time.perf_counter()
    features, labels = cached_features(classifier, batches)
    once = time.perf_counter() - start
    cached = statistics.median(seconds(lambda: epoch(Rows({"features": features, "label": labels}, 64)))
                               for _ in range(epochs))
    recomputed = seconds(lambda: epoch(batches))
    whole = epochs * recomputed / (once + epochs * cached)
    return {f"probe on {n} stories: an epoch recomputed over one from the cache": recomputed / cached,
            f"  the same for {epochs} epochs, filling the cache included": whole}


def cache(repeats=5, batch_size=8, new=96):
    """Time of generation without a cache over that with it, on the same weights and prompts."""
    model, tokenizer = load_model(BASE)
    prompt = torch.tensor([tokenizer.encode("One sunny morning")] * batch_size)

    def cached():
        generate(model, prompt, max_new_tokens=new, temperature=0.0, eos_id=None, pad_id=tokenizer.pad_id)

    @torch.no_grad()
    def uncached():
        ids = prompt
        for _ in range(new):
            ids = torch.cat((ids, model.head(model.body(ids)[:, -1]).argmax(-1, keepdim=True)), dim=1)

    cached()
    ratios = [seconds(uncached) / seconds(cached) for _ in range(repeats)]
    return {f"uncached over cached generation ({batch_size} x {new} tokens)": statistics.median(ratios)}


def ppo(iterations=4, batch_size=64):
    """Where the time of a PPO iteration goes, in shares."""
    policy, tokenizer = load_model(BASE)
    reward_model = TokenScorer(copy.deepcopy(policy.body)).eval()
    prompts = [encode_prompt(tokenizer, prompt) for prompt, _ in story_requests(iterations * batch_size, 0, "bench")]
    config = PPOConfig(epochs=2, minibatch_size=16, max_new_tokens=96, lr=1e-6)
    rows = train_ppo(policy, make_reference(copy.deepcopy(policy)), copy.deepcopy(reward_model),
                     reward_from_model(reward_model), prompts, config, iterations=iterations, batch_size=batch_size,
                     eos_id=None, pad_id=tokenizer.pad_id, progress=False)[1:]
    times = {
        part: statistics.median(row[f"seconds_{part}"] for row in rows) for part in ("rollout", "scoring", "update")
    }
    total = sum(times.values())
    return {f"PPO iteration ({batch_size} answers of 96 tokens, 2 epochs), seconds": total,
            **{f"  of it {part}": value / total for part, value in times.items()}}


def main(*parts, about=__doc__):
    """Run some measures, print their figures, and write them to --json. parts: functions that give {name: figure}."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--only", choices=[part.__name__ for part in parts], help="one of them")
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch (default: its own choice)")
    parser.add_argument("--json", help="a file for the figures")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    figures = {}
    for part in parts:
        if options.only in (None, part.__name__):
            figures |= part()
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    width = max(map(len, figures))
    print("\n".join(f"{name:{width}}  {value:10.3f}" for name, value in figures.items()))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(decoder, encoder, probe, cache, ppo)
