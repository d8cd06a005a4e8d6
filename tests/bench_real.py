"""How fast and how large SmolLM2 is here, side by side with others: `python -m tests.bench_real` (a few minutes).

A token of a chat beside the bare products of all matrices with one vector, and beside transformers' generate. Needs
requirements-real.txt with its packages, and tests/peers/requirements.txt. Ratios are what to compare.
"""

import argparse
import platform
import statistics
import time
from datetime import date

import torch

from minift.core.generate import stream
from minift.core.pretrained import load_pretrained, locate
from minift.datasets.chat import encode_prompt

PROMPT = "Describe a walk along the sea in winter."


class Beside:
    """A streamer that transformers' generate calls for each token; there, the others take their turn, and the clock."""

    def __init__(self, others):
        self.others, self.rows, self.start = others, [], None

    def put(self, ids):
        """A row of seconds, theirs and each other's; the prompt and the token after it are not counted."""
        now = time.perf_counter()
        theirs = None if self.start is None else now - self.start
        row = [seconds(work) for work in self.others]
        self.rows.append((theirs, *row))
        self.start = time.perf_counter()

    def end(self):
        self.rows = self.rows[2:]


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def chat(new=48):
    """Seconds of one token, in turn: transformers, minift, and the bare products of the same matrices."""
    from transformers import LlamaForCausalLM

    path = locate("smollm2")
    theirs = LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    ours, tokenizer = load_pretrained("smollm2")
    ids = torch.tensor([encode_prompt(tokenizer, PROMPT)])
    tokens = stream(ours, ids, max_new_tokens=new + 2, temperature=0.0)
    matrices = [p.detach() for p in ours.parameters() if p.ndim == 2]
    vectors = [torch.randn(matrix.shape[1]) for matrix in matrices]
    written = []

    def products():
        for matrix, vector in zip(matrices, vectors):
            matrix.mv(vector)

    beside = Beside([lambda: written.append(next(tokens)), products])
    out = theirs.generate(ids, max_new_tokens=new + 1, min_new_tokens=new + 1, do_sample=False, streamer=beside)
    assert out[0, ids.shape[1]:].tolist() == written[:new + 1], "the two do not write the same"
    rows = list(zip(*beside.rows))
    theirs, ours, bare = rows
    return {"SmolLM2, one token of a chat (s)": statistics.median(ours),
            "  over the bare matrix-vector products": ratio(ours, bare),
            "  transformers' generate over it": ratio(theirs, ours)}


def ratio(over, under):
    return statistics.median(a / b for a, b in zip(over, under))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=None, help="of PyTorch (default: its own choice)")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    figures = chat()
    print(f"{date.today()}, {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    width = max(map(len, figures))
    print("\n".join(f"{name:{width}}  {value:10.3f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
