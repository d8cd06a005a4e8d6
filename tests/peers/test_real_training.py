"""Every kind of training on the real models, by the commands of lessons/real_models.md with less of everything.

Needs requirements-real.txt with its packages of weights; without them every test here is skipped, and says so.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from children import peak_while

from minift.__main__ import main
from minift.errors import MiniftError
from minift.formats.pretrained import locate

pytest.importorskip("gguf", reason="gguf is missing: pip install -r requirements-real.txt")
ROOT = Path(__file__).parents[2]
DATA = ROOT / "data" / "real"
LORA = ("--model", "smollm2", "--lora", "4", "--batch-size", "2", "--accumulate", "1", "--eval-every", "9", "--lr")
PLAY = """MARTA. The tide is out, and with it went our boat.
OSKAR. Then let us walk. The sand is firm, and I have legs enough for two, if you have songs for one.
MARTA. I have one song, and it is long, and sad, and about boats.
OSKAR. Sing it, and let the tide be sorry.
"""


def real(name):
    """Skip, loudly, where the package of a real model is missing."""
    try:
        locate(name)
    except MiniftError as error:
        pytest.skip(str(error))


@pytest.fixture
def few(tmp_path):
    """A function that copies the first rows of a data file to a file of their own: its path."""
    def copy(name, n):
        lines = (DATA / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:n]), encoding="utf-8")
        return tmp_path / name
    return copy


def run(*words):
    """Run a command; what its run.json says."""
    assert main([str(word) for word in words]) == 0
    return json.loads((words[-1] / "run.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("verb", "name"), [("sft", "cards.jsonl"), ("reward", "pairs.jsonl"), ("dpo", "pairs.jsonl"),
                                            ("pretrain", "play.txt")])
def test_what_is_trained_is_learned(verb, name, few, tmp_path, run=run):
    """A few steps on two rows and the loss on these rows has fallen, from log 2 for pairs; the base is not saved."""
    real("smollm2")
    (tmp_path / "play.txt").write_text(PLAY, encoding="utf-8")
    data, out = tmp_path / name if verb == "pretrain" else few(name, 2), tmp_path / "out"
    record = run(verb, *LORA, "2e-3", "--steps", 3, "--data", data, "--valid", copy_of(data), "--out", out)
    before, after = (record[part]["valid_loss"] for part in ("before", "result"))
    assert after < 0.95 * before
    if verb == "dpo":
        assert before == pytest.approx(math.log(2), abs=1e-5)
    assert sum(file.stat().st_size for file in out.iterdir()) < 4e6


def test_the_picture_of_the_loss(tmp_path):
    """The page's command for it, from the root of the repository, without minift installed."""
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "run.json").write_text('{"before": {"valid_loss": 2}}', encoding="utf-8")
    page = (ROOT / "lessons" / "real_models.md").read_text(encoding="utf-8")
    line, = re.findall(r"python (-m data\.real\.draw_loss) ", page)
    subprocess.run([sys.executable, *line.split(), tmp_path, tmp_path / "loss.png"], cwd=ROOT, check=True)
    assert (tmp_path / "loss.png").stat().st_size > 1000


def copy_of(path):
    """The same rows in another file, as --valid must be one of its own."""
    copy = path.with_name(f"valid-{path.name}")
    copy.write_bytes(path.read_bytes())
    return copy


def test_ppo_begins_at_its_reference(few, tmp_path, run=run):
    """With LoRA off the policy is the reference: before the first update their KL is 0."""
    real("smollm2")
    judge = tmp_path / "judge.py"
    judge.write_text("def score(prompts, responses):\n    return list(map(len, responses))\n", encoding="utf-8")
    run("ppo", *LORA[:4], "--data", few("short.jsonl", 2), "--reward-fn", f"{judge}:score", "--iterations", 1,
        "--batch-size", 2, "--max-new-tokens", 4, "--out", tmp_path / "out")
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert abs(first["kl"]) < 1e-3


def test_memory(few, tmp_path):
    """The page's command for SFT, on rows of the usual length, needs less than 4 GB of memory at its peak."""
    real("smollm2")
    if not Path("/proc/self/status").exists():
        pytest.skip("the memory of a process is read from /proc, which only Linux has")
    words = ["sft", "--model", "smollm2", "--data", few("cards.jsonl", 8), "--lora", "8", "--steps", "1", "--out",
             tmp_path / "out"]
    peak = peak_while("from minift.__main__ import main", f"assert main({[str(word) for word in words]}) == 0")
    assert 0.5e9 < peak < 3.5e9
