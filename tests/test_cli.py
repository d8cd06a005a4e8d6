"""The command line from end to end, on a model that is a few thousand parameters small; and its examples on
data/base."""

import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_jobs import save_tiny, write
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from minift.__main__ import main
from minift.cli import rewards, sampling
from minift.cli.models import open_model
from minift.cli.options import settle
from minift.cli.parser import VERBS, find_module, parse
from minift.cli.pretrain import SAMPLE_LENGTH, SAMPLE_PROMPT
from minift.cli.sampling import continuation
from minift.core import transformer
from minift.core.files import read_tensors
from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.formats.adapter import save_adapter
from minift.formats.checkpoint import load_model
from minift.methods.lora import add_lora, without_lora
from minift.methods.sft import make_labels
from minift.text.chat import encode_chat, encode_prompt
from minift.text.jsonl import read_jsonl
from minift.text.pairs import collate_pairs, encode_pair

ROOT = Path(__file__).parents[1]
NAMES = (
    "Ada Bob Cid Dan Eve Fay Gus Hal Ida Jon Kim Lea Mia Ned Ola Pia Quin Rob Sue Tom Uma Vic Wes Xia Yan Zoe".split()
)
CHATS = [{"prompt": f"Where is {name}?", "completion": f"{name} is at the mill."} for name in NAMES]
PAIRS = [{"prompt": f"Read: {name}.", "chosen": f"{name} has a red kite. happy end.", "rejected": f"{name} fox"}
         for name in NAMES]
TEXTS = [{"text": f"{name} has a blue boat. Where is the fox? The fox is at the mill with {name}."} for name in NAMES]
PROMPTS = [{"prompt": row["prompt"]} for row in CHATS]
VERB_DATA = {"sft": CHATS, "dpo": PAIRS, "reward": PAIRS, "pretrain": TEXTS, "ppo": PROMPTS,
             "grpo": PROMPTS}
FEW = ["--lora", "2", "--batch-size", "8"]


def call(*argv):
    """The exit code of a command, run in this process."""
    return main([str(word) for word in argv])


def prepare(tmp_path, rows, name="data.jsonl"):
    """(model folder, data file) in a fresh folder."""
    return save_tiny(tmp_path / "model"), write(tmp_path / name, *rows)


def train_command(verb, tmp_path, out="out", *more):
    """A short run of a training verb on its rows; returns the words of the command."""
    model, data = prepare(tmp_path, VERB_DATA[verb], f"{verb}.jsonl")
    words = [verb, "--model", model, "--data", data, "--out", tmp_path / out]
    if verb in ("ppo", "grpo"):
        (tmp_path / "r.py").write_text(
            "def score(prompts, responses):\n    return [float(len(r)) for r in responses]\n", encoding="utf-8"
        )
        words += ["--reward-fn", tmp_path / "r.py:score", "--iterations", 2, "--batch-size", 4, "--max-new-tokens", 4,
                  "--epochs", 1]
        words += ["--group-size", 2] if verb == "grpo" else []
    else:
        words += ["--steps", 4, "--batch-size", 8, "--eval-every", 2]
    return words + list(more)


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def assert_same_bits(path, other):
    """Two files of tensors hold the same names and numbers, to the last bit."""
    tensors, others = read_tensors(path)[0], read_tensors(other)[0]
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


# ---- a run and what it leaves ----


def test_sft_keeps_the_best_and_writes_what_was_run(tmp_path, capsys):
    """The folder holds the weights of the best validation; run.json says on which data, with which command, to
    which loss."""
    model_path, data = prepare(tmp_path, CHATS)
    held_out = [{**row, "completion": f"The fox has a {row['completion'][:3]} boat."} for row in CHATS[:4]]
    valid = write(tmp_path / "valid.jsonl", *held_out, CHATS[4])
    held_out.append(CHATS[4])
    assert (
        call("sft", "--model", model_path, "--data", data, "--valid", valid, "--out", tmp_path / "out", "--steps", 12,
             "--batch-size", 8, "--eval-every", 1, "--lr", 0.03)
        == 0
    )
    record, rows = read(tmp_path / "out" / "run.json"), read_jsonl(tmp_path / "out" / "metrics.jsonl")
    losses = {row["step"]: row["valid_loss"] for row in rows}
    assert record["best_step"] == min(losses, key=losses.get) < 12, "made so that the last step is not the best"
    assert record["result"]["valid_loss"] == losses[record["best_step"]] and record["status"] == "finished"
    assert record["data"][data.as_posix()] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert f"--data {data}" in record["command"] and record["versions"]["torch"] == torch.__version__
    assert record["loss"] == [rows[0]["loss"], rows[-1]["loss"]], "the first step and the last, not the best"
    assert record["rows"]["valid"]["noted"] == {"also in --data, so that the validation is too kind": 1}
    model, tokenizer = load_model(tmp_path / "out")
    nll = []
    for row in held_out:  # by hand, with torch's own cross entropy
        chat = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        ids, mask = encode_chat(tokenizer, chat)
        labels = torch.tensor(make_labels(ids, mask))[1:]
        nll.append(F.cross_entropy(model(torch.tensor([ids]))[0, :-1], labels, reduction="none")[labels != -100])
    assert torch.cat(nll).mean().item() == pytest.approx(record["result"]["valid_loss"], abs=1e-5)
    assert not (tmp_path / "out" / "state.safetensors").exists()
    assert "best step" in capsys.readouterr().out


def test_sft_without_enough_rows_keeps_the_last(tmp_path, capsys):
    """Fewer than 20 different prompts are not split; the last weights are kept, and the output says so."""
    model, data = prepare(tmp_path, CHATS[:6])
    assert call("sft", "--model", model, "--data", data, "--out", tmp_path / "out", "--steps", 2) == 0
    assert "the last weights are kept" in capsys.readouterr().out
    assert all("valid_loss" not in row for row in read_jsonl(tmp_path / "out" / "metrics.jsonl"))
    record = read(tmp_path / "out" / "run.json")
    assert record["examples"] == {"train": 6, "valid": 0}
    assert [record["settings"][name] for name in ("lr", "batch_size", "accumulate")] == [1.5e-3, 16, 1], "as worked out"


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", "ppo", "grpo", "pretrain"])
def test_an_adapter_is_a_model_too(verb, tmp_path, capsys):
    """With --lora the folder holds the adapter alone, beside an untouched base; --model takes it, and merge makes
    it plain."""
    assert call(*train_command(verb, tmp_path, "out", "--lora", 2, "--lr", 0.05)) == 0
    out = tmp_path / "out"
    assert (out / "adapter_model.safetensors").exists() and not (out / "model.safetensors").exists()
    model, tokenizer = open_model(out)
    base, _ = load_model(tmp_path / "model")
    ids = torch.randint(300, (2, 9), generator=torch.Generator().manual_seed(1))
    with without_lora(model):
        assert torch.equal(model.body(ids), base.body(ids))
    assert not torch.equal(model.body(ids), base.body(ids)), "nothing was learned"
    assert call("merge", "--model", out, "--out", tmp_path / "merged") == 0
    merged, its_tokenizer = load_model(tmp_path / "merged")
    torch.testing.assert_close(merged(ids), model(ids), atol=1e-5, rtol=0)
    assert its_tokenizer.hash() == tokenizer.hash()
    if verb == "sft":  # an adapter upon an adapter has the first one merged for its base
        assert (
            call("dpo", "--model", out, "--data", write(tmp_path / "p.jsonl", *PAIRS), "--out", tmp_path / "next",
                 "--steps", 1, *FEW)
            == 0
        )
        with without_lora(open_model(tmp_path / "next")[0]) as upon:
            torch.testing.assert_close(upon(ids), model(ids), atol=1e-5, rtol=0)
        assert (tmp_path / "next" / "base" / "model.safetensors").exists(), "the merged base lies beside its adapter"
        data = tmp_path / "sft.jsonl"  # without --lora the adapter is merged, and all of the model trained
        assert call("sft", "--model", out, "--data", data, "--out", tmp_path / "all", "--steps", 1) == 0
        assert (tmp_path / "all" / "model.safetensors").exists() and not (tmp_path / "all" / "base").exists()


def test_nothing_of_an_earlier_run_is_left(tmp_path):
    """--overwrite removes the files of the run before: a whole model written over an adapter is no adapter any more."""
    command = train_command("sft", tmp_path)
    for more in ([*FEW, "--overwrite"], ["--overwrite"]):
        assert call(*command, *more) == 0
    assert not (tmp_path / "out" / "adapter_config.json").exists() and (tmp_path / "out" / "model.safetensors").exists()
    assert (call(*command, *FEW, "--overwrite") == 0
            and call("merge", "--model", tmp_path / "out", "--out", tmp_path / "m") == 0)
    shutil.copy(tmp_path / "out" / "adapter_config.json", tmp_path / "m")
    assert call("merge", "--model", tmp_path / "out", "--out", tmp_path / "m", "--overwrite") == 0
    assert not (tmp_path / "m" / "adapter_config.json").exists()


@pytest.mark.parametrize("verb", ["merge", "export", "sft"])
def test_the_model_that_is_read_is_not_written_over(verb, tmp_path, capsys):
    """--out may not be the folder of --model, not even with --overwrite: its files stay."""
    model, data = prepare(tmp_path, CHATS)
    if verb == "merge":
        save_adapter(add_lora(load_model(model)[0], 2, 4), tmp_path / "adapter", base=model.as_posix())
        model = tmp_path / "adapter"
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    more = ["--data", data] if verb == "sft" else []
    assert call(verb, "--model", model, "--out", model, "--overwrite", *more) == 2
    assert "is where the model is read from" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in model.iterdir()}


@pytest.mark.parametrize("more", [[], FEW])
def test_dpo_starts_at_the_reference(more, tmp_path):
    """Before the first step the policy is the reference: the validation loss is ln 2, all rewards are 0, with LoRA
    or without."""
    assert call(*train_command("dpo", tmp_path, "out", *more)) == 0
    before = read(tmp_path / "out" / "run.json")["before"]
    assert before["valid_loss"] == pytest.approx(math.log(2), abs=1e-6) and abs(before["valid_margin"]) < 1e-4


@pytest.mark.parametrize("more", [[], FEW])
def test_reward_scores_are_normalised(more, tmp_path):
    """The saved model's scores of the answers it was trained on have mean 0 and standard deviation 1."""
    data = write(tmp_path / "few.jsonl", *PAIRS[:8])
    assert (
        call("reward", "--model", save_tiny(tmp_path / "model"), "--data", data, "--out", tmp_path / "out", *more,
             "--batch-size", 4) == 0
    )
    model, tokenizer = open_model(tmp_path / "out")
    batch = collate_pairs([encode_pair(tokenizer, *row.values(), 96) for row in PAIRS[:8]], tokenizer.pad_id)
    scores = torch.cat(
        [model.last_scores(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"])
         for side in ("chosen", "rejected")]
    )
    assert scores.mean().item() == pytest.approx(0, abs=1e-5) and scores.std(unbiased=False).item() == pytest.approx(
        1, abs=1e-4
    )


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
@pytest.mark.parametrize("more", [[], FEW])
def test_rollouts_start_at_the_reference_and_ask_the_function(verb, more, tmp_path):
    """The first held-out KL is 0; the score is what the user's function says, which sees the prompts of the file."""
    command = train_command(verb, tmp_path, "out", "--missing-eos-penalty", 0, *more)
    (tmp_path / "r.py").write_text(
        "def score(prompts, responses):\n    assert all(p.startswith('Where is') for p in prompts)\n"
        "    return [3.5] * len(responses)\n",
        encoding="utf-8",
    )
    assert call(*command) == 0
    record = read(tmp_path / "out" / "run.json")
    assert record["before"]["valid_kl"] == pytest.approx(0, abs=1e-5)
    assert record["before"]["valid_score"] == record["result"]["last_score"] == 3.5


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
def test_rollouts_with_a_reward_model(verb, tmp_path):
    """The folder that the verb reward writes is a judge for ppo and grpo, as a whole model and as an adapter."""
    model, pairs = prepare(tmp_path, PAIRS)
    for name, more in (("whole", []), ("adapter", FEW)):
        assert call("reward", "--model", model, "--data", pairs, "--out", tmp_path / name, "--steps", 1, *more) == 0
        command = train_command(verb, tmp_path, f"{name}-{verb}", *more)
        at = command.index("--reward-fn")
        command[at : at + 2] = ["--reward-model", tmp_path / name]
        assert call(*command) == 0


CHECKED = ["--checker", "exact", "--iterations", 2, "--batch-size", 4, "--group-size", 2, "--max-new-tokens", 8]


@pytest.mark.parametrize("key", ["answer", "completion"])
def test_grpo_checks_answers(key, tmp_path, monkeypatch):
    """1 for the row's own answer if it ends, whether the row calls it answer or completion; a number counts as text."""
    rows = [{"prompt": f"Where is {name}?", key: 7 if key == "answer" else "7"} for name in NAMES]
    model, data = prepare(tmp_path, rows)
    tokenizer, seen = load_model(model)[1], []
    asked = rewards.right_answers
    monkeypatch.setattr(rewards, "right_answers", lambda examples: seen.append(asked(examples)) or seen[0])
    assert call("grpo", "--model", model, "--data", data, "--out", tmp_path / "out", *CHECKED) == 0
    prompt = encode_prompt(tokenizer, rows[0]["prompt"])
    assert len(seen[0]) == len(NAMES) and seen[0][tuple(prompt)] == {"7"}
    record = read(tmp_path / "out" / "run.json")
    assert record["before"]["valid_score"] == 0 and record["settings"]["checker"] == "exact"


def test_grpo_reads_chats(tmp_path, monkeypatch, capsys):
    """The last answer of a chat is the right one, and all before it is the prompt; a chat without it has no answer."""
    turns = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "Here."},
             {"role": "user", "content": "And Tom?"}, {"role": "assistant", "content": "There."}]
    model, data = prepare(tmp_path, [{"messages": turns}, {"messages": turns[:2]}])
    tokenizer, seen = load_model(model)[1], []
    asked = rewards.right_answers
    monkeypatch.setattr(rewards, "right_answers", lambda examples: seen.append(asked(examples)) or seen[0])
    words = ["grpo", "--model", model, "--data", data, "--out", tmp_path / "out", *CHECKED]
    assert call(*words) == 0
    assert seen[0] == {
        tuple(encode_prompt(tokenizer, turns[:3])): {"There."}, tuple(encode_prompt(tokenizer, "Where?")): {"Here."}}
    write(data, {"messages": turns[:3]})
    assert call(*words, "--overwrite") == 2
    assert f"{data}:1: --checker exact needs an 'answer'" in capsys.readouterr().err


def test_grpo_needs_one_judge_and_right_answers(tmp_path, capsys):
    """No judge, two judges, a row without an answer, an answer that is no text: one sentence that says what to mend."""
    model, data = prepare(tmp_path, PROMPTS[:3])
    words = ["grpo", "--model", model, "--data", data, "--out", tmp_path / "out"]
    for more in ([], ["--checker", "exact", "--reward-model", model]):
        assert call(*words, *more) == 2
        assert "grpo needs one of --reward-model DIR and --reward-fn" in capsys.readouterr().err
    assert call(*words, *CHECKED) == 2
    assert f"{data}:1: --checker exact needs an 'answer'" in capsys.readouterr().err
    write(data, {"prompt": "Where?", "answer": ["a", "b"]})
    assert call(*words, *CHECKED) == 2
    assert f"{data}:1: 'answer' must be a string or a number" in capsys.readouterr().err
    assert call(*words, "--checker", "exact", "--clip-range", 1, 2, 3) == 2
    assert "one number, or two" in capsys.readouterr().err


def test_pretrain_says_how_surprised_it_was(tmp_path, capsys):
    """Perplexity before and after is exp of the held-out loss; a sample of each goes on from the same words."""
    model, data = prepare(tmp_path, TEXTS)
    (tmp_path / "play.md").write_text(TEXTS[0]["text"] * 3, encoding="utf-8")
    assert (
        call("pretrain", "--model", model, "--data", tmp_path / "*.jsonl", tmp_path / "*.md", "--valid",
             tmp_path / "play.md", "--out", tmp_path / "out", "--steps", 30, "--replay", data, "--lr", 0.01)
        == 0
    )
    record, out = read(tmp_path / "out" / "run.json"), capsys.readouterr().out
    for moment in ("before", "result"):
        assert record[moment]["valid_perplexity"] == pytest.approx(math.exp(record[moment]["valid_loss"]))
    assert record["result"]["valid_perplexity"] < record["before"]["valid_perplexity"]
    samples = [record["result"][f"sample_{moment}"].split(">>>") for moment in ("before", "after")]
    assert (
        samples[0][0] == samples[1][0] and TEXTS[0]["text"].startswith(samples[0][0]) and samples[0][1] != samples[1][1]
    )
    assert "valid_perplexity" in out and len(record["data"]) == 2


def test_the_sample_after_is_of_the_weights_that_are_kept(tmp_path):
    """When the best step is not the last, what a verb goes on with after training is the best: the saved model
    says the same."""
    model, data = prepare(tmp_path, TEXTS)
    (tmp_path / "other.txt").write_text("happy end. " * 20, encoding="utf-8")
    assert (
        call("pretrain", "--model", model, "--data", data, "--valid", tmp_path / "other.txt", "--out", tmp_path / "out",
             "--steps", 20, "--eval-every", 2, "--lr", 0.03)
        == 0
    )
    record = read(tmp_path / "out" / "run.json")
    assert record["best_step"] < 20, "made so that the last step is not the best"
    kept, tokenizer = load_model(tmp_path / "out")
    prompt = tokenizer.encode("happy end. " * 20)[:SAMPLE_PROMPT]
    assert record["result"]["sample_after"] == continuation(kept, tokenizer, prompt, SAMPLE_LENGTH, 0)


# ---- stopping and going on ----


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_saves_and_resume_is_bit_equal(tmp_path, capsys):
    """Ctrl-C ends with exit code 130 and a sentence; --resume then gives, on the CPU, the very numbers of a run
    never stopped."""
    model, data = prepare(tmp_path, CHATS)
    words = ["sft", "--model", model, "--data", data, "--steps", "200", "--batch-size", "8", "--eval-every", "90",
             "--lr", "1e-4"]
    words = [str(word) for word in words]
    out, metrics = tmp_path / "stopped", tmp_path / "stopped" / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "minift", *words, "--out", str(out)], cwd=ROOT,
                               stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                               env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, encoding="utf-8")
    end = time.time() + 300
    while (process.poll() is None and time.time() < end
           and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3)):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130 and "repeat the command with --resume" in stderr and "Traceback" not in stderr
    assert read(out / "run.json")["status"] == "interrupted"
    done = metrics.read_bytes().count(b"\n")
    assert 3 <= done < 200, "it must be stopped in the middle for this test to say anything"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert call(*words, "--out", out, "--resume") == 0 and call(*words, "--out", tmp_path / "whole") == 0
    finally:
        torch.set_num_threads(threads)
    assert_same_bits(out / "model.safetensors", tmp_path / "whole" / "model.safetensors")
    assert metrics.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert call(*words, "--out", out, "--resume") == 2 and "is finished" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
@pytest.mark.parametrize("more", [[], FEW])
def test_rollouts_are_stopped_and_resumed(verb, more, tmp_path, capsys):
    """A run stops after the iteration in which Ctrl-C came; resumed, it ends with the very numbers of a run never
    stopped."""
    command = train_command(verb, tmp_path, "whole", "--iterations", 4, *more)
    assert call(*command) == 0
    command[command.index(tmp_path / "whole")] = tmp_path / "stopped"
    working = (tmp_path / "r.py").read_text(encoding="utf-8")
    stopping = "    calls.append(1)\n    if len(calls) == 4:\n        signal.raise_signal(signal.SIGINT)\n    return"
    (tmp_path / "r.py").write_text(
        f"import signal\ncalls = []\n{working.replace('    return', stopping)}", encoding="utf-8"
    )
    assert call(*command) == 130
    assert "--resume" in capsys.readouterr().err and len(read_jsonl(tmp_path / "stopped" / "metrics.jsonl")) < 4
    (tmp_path / "r.py").write_text(working, encoding="utf-8")
    assert call(*command, "--resume") == 0
    name = "adapter_model.safetensors" if more else "model.safetensors"
    assert_same_bits(tmp_path / "stopped" / name, tmp_path / "whole" / name)
    rows = [read_jsonl(tmp_path / run / "metrics.jsonl") for run in ("whole", "stopped")]
    assert [row["score"] for row in rows[0]] == [row["score"] for row in rows[1]]


def test_resume_wants_the_same_run(tmp_path, capsys):
    """A run whose settings or data have changed cannot go on: the error names what is different."""
    command = train_command("sft", tmp_path)
    assert call(*command) == 0
    record = read(tmp_path / "out" / "run.json")
    (tmp_path / "out" / "state.safetensors").write_bytes(b"")
    assert call(*command, "--resume", "--seed", 1) == 2 and "seed was 0 and is 1" in capsys.readouterr().err
    for name, value, old in (("lr", 0.5, 0.0015), ("batch_size", 4, 8)):
        assert call(*command, "--resume", f"--{name.replace('_', '-')}", value) == 2
        assert f"{name} was {old} and is {value}" in capsys.readouterr().err
    assert call(*command, "--resume", "--checkpointing") == 2 and "state.safetensors" in capsys.readouterr().err
    write(tmp_path / "sft.jsonl", *CHATS[1:])
    assert call(*command, "--resume") == 2
    assert record["data"][(tmp_path / "sft.jsonl").as_posix()][:20] in capsys.readouterr().err


def test_resume_sees_files_that_come_and_go(tmp_path, capsys):
    """A pattern that finds a file more, or a file fewer, than at the beginning is another run."""
    model, _ = prepare(tmp_path, CHATS, "part1.jsonl")
    second = write(tmp_path / "part2.jsonl", *CHATS)
    command = ["sft", "--model", model, "--data", tmp_path / "part*.jsonl", "--out", tmp_path / "out", "--steps", 1]
    assert call(*command) == 0
    (tmp_path / "out" / "state.safetensors").write_bytes(b"")
    third = write(tmp_path / "part3.jsonl", *CHATS)
    assert call(*command, "--resume") == 2 and f"{third.as_posix()} was None" in capsys.readouterr().err
    third.unlink()
    second.unlink()
    assert call(*command, "--resume") == 2 and f"{second.as_posix()} was " in capsys.readouterr().err


# ---- using a model ----


@pytest.mark.parametrize("verb", VERB_DATA)
def test_checkpointing_reaches_every_block_and_changes_nothing(verb, tmp_path, monkeypatch):
    """--checkpointing runs blocks a second time, of policy and value model alike; the weights come out the same."""
    ran = []
    monkeypatch.setattr(transformer, "checkpoint",
                        lambda block, *args, **rest: ran.append(block) or checkpoint(block, *args, **rest))
    words = train_command(verb, tmp_path, "plain")
    assert call(*words) == 0 and not ran
    words[words.index(tmp_path / "plain")] = tmp_path / "again"
    assert call(*words, "--checkpointing") == 0 and len(set(ran)) == 1 + (verb == "ppo")
    assert_same_bits(tmp_path / "plain" / "model.safetensors", tmp_path / "again" / "model.safetensors")


def test_generate_answers_a_file(tmp_path, capsys):
    """JSONL in, JSONL out, in order, rows with all they had; one prompt alone gives the same greedy answer."""
    model, data = prepare(tmp_path, [{**row, "id": i} for i, row in enumerate(PROMPTS[:5])] + TEXTS[:1])
    common = ["--model", model, "--temperature", 0, "--max-new-tokens", 6]
    assert call("generate", *common, "--data", data, "--out", tmp_path / "out.jsonl", "--batch-size", 2) == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row.get("id") for row in rows] == [0, 1, 2, 3, 4, None] and [row["prompt"] for row in rows[:5]] == [
        row["prompt"] for row in PROMPTS[:5]
    ]
    capsys.readouterr()
    for row in (rows[1], rows[4]):
        assert call("generate", *common, "--prompt", row["prompt"]) == 0
        assert capsys.readouterr().out == row["completion"] + "\n"
    assert call("generate", *common, "--prompt", TEXTS[0]["text"], "--raw") == 0
    assert capsys.readouterr().out == rows[5]["completion"] + "\n"
    again = ["generate", *common, "--data", data, "--out", tmp_path / "out.jsonl"]
    assert call(*again) == 2 and call(*again, "--overwrite") == 0
    capsys.readouterr()
    for verb, file in (("generate", data), ("evaluate", write(tmp_path / "chats.jsonl", *CHATS[:2]))):
        assert call(verb, "--model", model, "--data", file, "--max-new-tokens", 95) == 2
        assert f"{file}:1: the prompt has" in capsys.readouterr().err, "the row that leaves no room is named"


def test_a_chat_is_held_until_the_end_of_input(tmp_path, monkeypatch, capsys):
    """Each answer is written as it comes; the second prompt holds the first exchange; /quit or the end of the
    input ends it."""
    model = save_tiny(tmp_path / "model")
    said, prompts = iter(["fox", "kite", "/quit", "never"]), []

    def stream_text(model, tokenizer, prompt, **settings):
        prompts.append(tokenizer.decode(prompt))
        yield from ("the ", "mill")

    monkeypatch.setattr("builtins.input", lambda label: next(said))
    monkeypatch.setattr(sampling, "stream_text", stream_text)
    assert call("chat", "--model", model, "--system", "Be.") == 0
    assert prompts == ["<system>Be.<user>fox<assistant>",
                       "<system>Be.<user>fox<assistant>the mill<eos><user>kite<assistant>"]
    assert capsys.readouterr().out.count("model: the mill\n") == 2

    def end(label):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    assert call("chat", "--model", model) == 0


def test_evaluate_measures_each_form(tmp_path, capsys):
    """One file of each form gives perplexity, exact match and pair accuracy; a model against itself has no
    implicit reward."""
    model = save_tiny(tmp_path / "model")
    files = [write(tmp_path / f"{i}.jsonl", *rows[:4]) for i, rows in enumerate((TEXTS, CHATS, PAIRS))]
    assert (
        call("evaluate", "--model", model, "--data", *files, "--reference", model, "--out", tmp_path / "e.json",
             "--max-new-tokens", 4)
        == 0
    )
    found = read(tmp_path / "e.json")
    assert found["implicit_reward_accuracy"] == 0 and found["gap"] == pytest.approx(0, abs=1e-5)
    assert (found["perplexity"] == pytest.approx(math.exp(found["loss"])) and found["exact_match"] == 0
            and found["answers"] == 4)
    capsys.readouterr()
    reward_model = save_tiny(tmp_path / "reward", "TokenScorer")
    assert (call("evaluate", "--model", reward_model, "--data", files[2]) == 0
            and "pair_accuracy" in capsys.readouterr().out)
    assert call("evaluate", "--model", reward_model, "--data", files[0]) == 2


def test_the_reference_is_what_reference_names(tmp_path):
    """With --reference the gap of a pair is that of the model less that of the other model."""
    pairs, gaps = write(tmp_path / "pairs.jsonl", *PAIRS[:4]), {}
    model, other = (save_tiny(tmp_path / f"model{seed}", seed=seed) for seed in (0, 1))
    for name, words in (("model", [model]), ("other", [other]), ("both", [model, "--reference", other])):
        out = tmp_path / f"{name}.json"
        assert call("evaluate", "--data", pairs, "--out", out, "--model", *words) == 0
        gaps[name] = read(out)["gap"]
    assert gaps["both"] == pytest.approx(gaps["model"] - gaps["other"], abs=1e-5) and abs(gaps["other"]) > 1e-3
    assert read(tmp_path / "both.json")["data"] == [str(pairs)]
    again = ["evaluate", "--data", pairs, "--out", tmp_path / "model.json", "--model", model]
    assert call(*again) == 2 and call(*again, "--overwrite") == 0


def test_check_data_shows_all_problems(tmp_path, capsys):
    """Every bad row is listed with its place; good rows are counted by form, with what is learned; the exit code
    is 2."""
    model, data = prepare(
        tmp_path, [CHATS[0], "{", CHATS[0], PAIRS[0], {"prompt": 1}, {"messages": [{"role": "bot", "content": "x"}]}]
    )
    assert call("check-data", "--model", model, "--data", data) == 2
    captured = capsys.readouterr()
    problems = [line for line in captured.out.splitlines() if line.startswith("problem: ")]
    assert [problem.split(": ")[1] for problem in problems] == [f"{data}:2", f"{data}:5", f"{data}:6[0]"]
    assert ("<user>Where is Ada?<assistant>«Ada is at the mill.<eos>»" in captured.out
            and "1 the same as an earlier row" in captured.out)
    assert captured.err.count("\n") == 1 and "3 rows are bad" in captured.err
    assert call("check-data", "--model", model, "--data", write(tmp_path / "good.jsonl", *CHATS)) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out and "MiB" in out


# ---- help, and examples that work as written ----


def test_help_answers_at_once_and_fits_a_screen(capsys):
    """Every verb's help is at most 42 lines and ends with its example; understanding a command does not load
    PyTorch."""
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            call(verb, "--help")
        lines = capsys.readouterr().out.rstrip().splitlines()
        assert stop.value.code == 0 and len(lines) <= 42, verb
        assert lines[-1].startswith("  python -m minift ") and not any(
            len(line) > 100 for line in lines if "python" not in line
        ), verb
    lines = ["import sys, minift.__main__ as command", "try: command.main(['sft', '--help'])",
             "except SystemExit: pass", "assert 'torch' not in sys.modules"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=ROOT, check=True, capture_output=True)


def settled(model, verb, *more):
    """The settings of a command once its model is known."""
    return settle(parse([verb, "--model", "m", "--data", "d", "--out", "o", *more]), model)


def models_by_size():
    """A toy and a model of 25M parameters, without memory for them."""
    sizes = {"context_length": 512, "n_layer": 1, "n_head": 1, "d_ff": 8}
    with torch.device("meta"):
        return [LanguageModel(TransformerConfig(vocab_size=50_000, d_model=d_model, **sizes)) for d_model in (8, 500)]


def test_lora_learns_faster(settled=settled):
    """The default learning rate is that of few weights with --lora and for a head alone, unless one was asked for."""
    for model in models_by_size():
        found = [settled(model, "sft", *more).lr for more in ([], ["--lora", "8"], ["--lr", "0.25", "--lora", "8"])]
        assert found[0] < found[1] and found[2] == 0.25
        ways = ([], ["--full"], ["--freeze", "--lr", "0.25"], ["--probe-then-full"])
        found = [settled(model, "classify", *more).lr for more in ways]
        assert found[0] > found[1] == found[3] and found[2] == 0.25


def test_real_models_go_slowly(settled=settled):
    """A real model gets lower rates and smaller batches, but steps on as many rows; plain text in shorter windows."""
    toy, real = models_by_size()
    for verb in ("pretrain", "sft", "reward", "dpo"):
        small, large = settled(toy, verb), settled(real, verb)
        assert large.lr < small.lr / 10 and large.batch_size < small.batch_size
        assert large.batch_size * large.accumulate == small.batch_size * small.accumulate
        assert settled(real, verb, "--lora", "8").lr < settled(toy, verb, "--lora", "8").lr / 4
    assert settled(toy, "pretrain").context == 512 > settled(real, "pretrain").context
    assert settled(real, "pretrain", "--context", "512").context == 512
    assert settled(real, "sft", "--batch-size", "7", "--accumulate", "2").batch_size == 7
    assert settled(real, "ppo").minibatch_size < settled(toy, "ppo").minibatch_size


def layout(tmp_path, monkeypatch):
    """A working directory with the repository's data/ in it; fails loudly when a checkpoint is missing."""
    for name, verb in (("base", "pretrain"), ("encoder", "mlm")):
        assert (ROOT / "data" / name / "model.safetensors").exists(), (
            f"data/{name} is missing: python -m minift {verb} --recipe {name} --out data/{name}"
        )
    try:
        (tmp_path / "data").symlink_to(ROOT / "data", target_is_directory=True)
    except OSError:  # Windows without the right to make links
        shutil.copytree(ROOT / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minift.cli.label_page.wait", lambda server: server.server_close())  # else it waits for Ctrl-C


def short(line):
    """The words of a `python -m minift` line, made short by the last word on the number of steps and tokens."""
    words = shlex.split(line)[3:]
    rollout = "--iterations 1 --max-new-tokens 8 --batch-size"
    more = {"ppo": f"{rollout} 4", "grpo": f"{rollout} 8", "generate": "--max-new-tokens 8",
            "evaluate": "--max-new-tokens 8", "chat": "--max-new-tokens 8", "merge": "", "export": "", "label": "",
            "templates": "", "check-data": "", "lesson": "", "lab": ""}
    return words + more.get(words[0], "--steps 2 --batch-size 4").split()


def commands(text):
    return [line.strip() for line in text.splitlines() if line.strip().startswith("python -m minift ")]


def readme_parts():
    """The README, and the page on real models."""
    return [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "lessons/real_models.md")]


def readme_lines():
    left_out = ("python -m minift tour", "python -m minift chat", "python -m minift pretrain --recipe")
    return [line for line in commands(readme_parts()[0]) if not line.startswith(left_out) and "plays/" not in line]


def test_examples_with_real_models_are_commands():
    """What lessons/real_models.md runs (tests/peers does it, with less of everything) is read without an error, its
    data lie where it says, and what it opens was written by a line above."""
    lines, made = commands(readme_parts()[1]), {"smollm2", "minilm"}
    assert {line.split()[3] for line in lines} >= {"sft", "reward", "dpo", "ppo", "pretrain", "classify"}
    for line in lines:
        options = parse(shlex.split(line)[3:])
        files = (getattr(options, "data", None) or []) + (getattr(options, "valid", None) or [])
        assert all((ROOT / file).is_file() or file.startswith(("runs/plays/", "runs/reviews/")) for file in files), line
        assert {options.model, getattr(options, "reward_model", None) or "smollm2"} <= made, line
        made.add(getattr(options, "out", None))


def test_examples_of_the_readme_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """Each `python -m minift` line of the README, in order, in a fresh copy of the repository's layout."""
    layout(tmp_path, monkeypatch)
    assert len(readme_lines()) >= 8, "the README shows how to use one's own data"
    for line in readme_lines():
        assert call(*short(line)) == 0, f"{line}\n{capsys.readouterr().err}"


def test_examples_of_the_help_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """The examples under each verb's --help are read without an error; those of verbs that the README does not run are
    run here."""
    layout(tmp_path, monkeypatch)
    said = iter(["Who is there?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda label: next(said))
    run_there = {line.split()[3] for line in readme_lines()}
    for verb in VERBS:
        examples = find_module(verb).EXAMPLES
        for line in (f"python -m minift {example}" for example in examples):
            assert parse(shlex.split(line)[3:]), line
            if verb not in run_there | {"tour"}:
                assert call(*short(line)) == 0, f"{line}\n{capsys.readouterr().err}"


def test_samples_are_as_their_names_say(tmp_path):
    """data/samples holds a file of each form, small, every row of it usable."""
    from minift.cli.rows import FORMS, read_rows

    samples = ROOT / "data" / "samples"
    forms = {"text": "text", "messages": "messages", "completions": "completion", "pairs": "pair", "prompts": "prompt",
             "labels": "label", "judged": "judged"}
    assert set(forms.values()) == set(FORMS)
    for name, form in forms.items():
        rows = read_rows([samples / f"{name}.jsonl"], (form,))
        assert (
            20 <= len({row.key() for row in rows}) == len(rows) and (samples / f"{name}.jsonl").stat().st_size < 80_000
        )
    labelled, new = (read_rows([samples / f"{name}.jsonl"], ("text",)) for name in ("labels", "unlabelled"))
    n_happy = [row.values["label"] for row in labelled].count("happy")
    assert len(labelled) == 240 and 100 < n_happy < 140 and len(new) == 8
    assert not {row.key() for row in labelled} & {row.key() for row in new}, "what is predicted was trained on"
    assert all(row.values.keys() == {"text"} for row in new)
