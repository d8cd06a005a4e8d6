"""How fast minift is, as ratios measured side by side in one run: `python -m tests.bench` (about a minute).

Three questions: how near training comes to the machine's own matrix products, what the KV cache saves, and where the
time of a PPO iteration goes. Absolute figures depend on the machine; the ratios are what to compare.
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

from minift.core.checkpoint import load_model
from minift.core.generate import generate
from minift.core.heads import LanguageModel, TokenScorer
from minift.core.logprobs import make_reference
from minift.core.train import make_optimizer, take_step
from minift.core.transformer import TransformerConfig
from minift.datasets.chat import encode_prompt
from minift.datasets.tasks import story_requests
from minift.methods.ppo import PPOConfig, train_ppo
from minift.methods.pretrain import make_pretrain_loss
from minift.methods.reward import reward_from_model

BASE = Path("data/base")


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def multiply_adds(config, length):
    """Multiply-adds of a training step, per token: a matrix once forward, twice backward; attention sees T/2 keys."""
    d, f, kv = config.d_model, config.d_ff, config.n_kv_head * config.d_head
    matrices = config.n_layer * (2 * d * d + 2 * d * kv + 3 * d * f) + d * config.vocab_size
    attention = config.n_layer * 2 * d * length / 2
    return 3 * (matrices + attention)


def train_against_gemm(repeats=7, length=256, batch_size=8):
    """Multiply-adds a second of forward and backward, over those of a matrix product on the same machine, in turn."""
    config = TransformerConfig(vocab_size=2048, context_length=length, n_layer=4, n_head=4, d_model=256, d_ff=688)
    torch.manual_seed(0)
    model = LanguageModel(config)
    loss_fn, optimizer = make_pretrain_loss(model), make_optimizer(model, lr=1e-4)
    batch = {"input_ids": torch.randint(0, config.vocab_size, (batch_size, length))}
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)

    def forward_backward():
        loss_fn(batch)[0].backward()

    rows = []
    for _ in range(repeats + 1):
        gemm = 2048**3 / min(seconds(lambda: a @ b) for _ in range(3))
        work = batch_size * length * multiply_adds(config, length)
        rows.append(
            (gemm, work / seconds(forward_backward),
             batch_size * length / seconds(lambda: take_step(optimizer, [batch], loss_fn, lr=1e-4)))
        )
    rows = rows[1:]
    return {"matrix product, multiply-adds (1e9/s)": statistics.median(row[0] for row in rows) / 1e9,
            "forward and backward over matrix product": statistics.median(row[1] / row[0] for row in rows),
            "training tokens/s (whole step, 3.7M parameters)": statistics.median(row[2] for row in rows)}


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch (default: its own choice)")
    parser.add_argument("--json", help="a file for the figures")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    figures = {}
    for measure in (train_against_gemm, cache, ppo):
        figures |= measure()
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    width = max(map(len, figures))
    print("\n".join(f"{name:{width}}  {value:10.3f}" for name, value in figures.items()))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
