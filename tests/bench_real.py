"""How fast and how large SmolLM2 is here, measured side by side: `python -m tests.bench_real` (two minutes).

A token of a chat beside the bare products of all matrices with one vector, and beside transformers' generate; and the
peak memory of a LoRA step, in a fresh process each, by what is computed of the loss and kept of the activations. Needs
requirements-real.txt with its packages, and tests/peers/requirements.txt. Ratios are what to compare. Linux only.
"""

import statistics
import time

import torch

from minift.core.generate import stream
from minift.formats.export import make_tensors
from minift.formats.family_config import write_config
from minift.formats.pretrained import load_pretrained
from minift.text.chat import encode_prompt
from tests.bench import main
from tests.children import measure

PROMPT = "Describe a walk along the sea in winter."


# ---- speed ----


class Beside:
    """A streamer: transformers' generate calls put for each of its tokens, and there the others take their turn."""

    def __init__(self, others):
        self.others, self.rows, self.start = others, [], None

    def put(self, ids):
        """Note a row of seconds: its own since the last call, then each other's. The prompt comes first."""
        theirs = time.perf_counter() - self.start if self.start else 0
        self.rows.append((theirs, *map(seconds, self.others)))
        self.start = time.perf_counter()

    def end(self):
        """What transformers calls at the end."""


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def ratio(over, under):
    return statistics.median(a / b for a, b in zip(over, under))


def chat(new=32):
    """Seconds of one token: transformers, minift, the bare products; in turn, so that all see the same machine."""
    from transformers import LlamaConfig, LlamaForCausalLM

    ours, tokenizer = load_pretrained("smollm2")
    theirs = LlamaForCausalLM(LlamaConfig(**write_config(ours, "llama"))).eval()
    theirs.load_state_dict(make_tensors(ours, "llama"), strict=False)       # the output layer is the embedding
    matrices = [p.detach() for p in ours.parameters() if p.ndim == 2]
    vectors = [torch.randn(matrix.shape[1]) for matrix in matrices]
    ids = torch.tensor([encode_prompt(tokenizer, PROMPT)])
    tokens, written = stream(ours, ids, max_new_tokens=new + 3, temperature=0.0), []

    def products():
        for matrix, vector in zip(matrices, vectors):
            matrix.mv(vector)

    beside = Beside([lambda: written.append(next(tokens)), products])
    out = theirs.generate(ids, max_new_tokens=new + 2, min_new_tokens=new + 2, do_sample=False, streamer=beside)
    assert out[0, ids.shape[1]:].tolist() == written[:new + 2], "the two do not write the same"
    theirs, ours, bare = zip(*beside.rows[3:])               # before: the prompts' own passes, and a warm-up
    return {"one token of a chat, ms": 1000 * statistics.median(ours),
            "  over the bare matrix-vector products": ratio(ours, bare),
            "  transformers' generate over it": ratio(theirs, ours)}


# ---- memory ----


BEFORE = """
import torch
from minift.formats.pretrained import load_pretrained
from minift.methods.lora import add_lora
from minift.methods.sft import make_sft_loss, sft_loss
torch.set_num_threads({threads})
model = add_lora(load_pretrained("smollm2")[0].train(), 8, 16)
ids = torch.randint(17, 49152, ({rows}, {length}), generator=torch.Generator().manual_seed(0))
batch = {{"input_ids": ids, "labels": ids.clone()}}
batch["labels"][:, :{prompt}] = -100
"""
WAYS = {"all logits": "loss = sft_loss(model(ids), batch['labels'])",
        "logits of responses only, in chunks": "loss = make_sft_loss(model)(batch)[0]",
        "the same, with checkpointing": "model.body.checkpointing = True; loss = make_sft_loss(model)(batch)[0]"}


def memory(rows=4, length=256, prompt=128):
    """Peak memory of one forward and backward pass, besides the model itself, in MB; and its time."""
    before = BEFORE.format(threads=torch.get_num_threads(), rows=rows, length=length, prompt=prompt)
    figures = {}
    for name, way in WAYS.items():
        peak, taken = measure(before, f"{way}; loss.backward()")
        figures |= {f"LoRA step, {rows} x {length} tokens, {name}: MB": peak / 1e6, f"  {name}: s": taken}
    return figures


if __name__ == "__main__":
    main(chat, memory, about=__doc__)
