"""The command line from end to end, on a model that is a few thousand parameters small; and its examples on data/base."""

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
from test_jobs import make_model, make_tokenizer, save_tiny, write
from torch.nn import functional as F

from minift.__main__ import main
from minift.core.checkpoint import load_model, read_tensors, save_model
from minift.datasets.batches import collate
from minift.datasets.chat import encode_chat
from minift.datasets.jsonl import read_jsonl
from minift.datasets.pairs import collate_pairs, encode_pair
from minift.jobs import use
from minift.jobs.models import open_model
from minift.jobs.verbs import VERBS
from minift.methods.lora import without_lora
from minift.methods.sft import make_labels

ROOT = Path(__file__).parents[1]
NAMES = "Ada Bob Cid Dan Eve Fay Gus Hal Ida Jon Kim Lea Mia Ned Ola Pia Quin Rob Sue Tom Uma Vic Wes Xia Yan Zoe".split()
CHATS = [{"prompt": f"Where is {name}?", "completion": f"{name} is at the mill."} for name in NAMES]
PAIRS = [{"prompt": f"Read: {name}.", "chosen": f"{name} has a red kite. happy end.", "rejected": f"{name} fox"} for name in NAMES]
TEXTS = [{"text": f"{name} has a blue boat. Where is the fox? The fox is at the mill with {name}."} for name in NAMES]
PROMPTS = [{"prompt": row["prompt"]} for row in CHATS]
VERB_DATA = {"sft": CHATS, "dpo": PAIRS, "reward": PAIRS, "pretrain": TEXTS, "ppo": PROMPTS}
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
    if verb == "ppo":
        (tmp_path / "r.py").write_text("def score(prompts, responses):\n    return [float(len(r)) for r in responses]\n", encoding="utf-8")
        words += ["--reward-fn", tmp_path / "r.py:score", "--iterations", 2, "--batch-size", 4, "--max-new-tokens", 4, "--epochs", 1]
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
    """The folder holds the weights of the best validation; run.json says on which data, with which command, to which loss."""
    model_path, data = prepare(tmp_path, CHATS)
    held_out = [{**row, "completion": f"The fox has a {row['completion'][:3]} boat."} for row in CHATS[:4]]
    valid = write(tmp_path / "valid.jsonl", *held_out, CHATS[4])
    held_out.append(CHATS[4])
    assert call("sft", "--model", model_path, "--data", data, "--valid", valid, "--out", tmp_path / "out", "--steps", 12,
                "--batch-size", 8, "--eval-every", 1, "--lr", 0.03) == 0
    record, rows = read(tmp_path / "out" / "run.json"), read_jsonl(tmp_path / "out" / "metrics.jsonl")
    losses = {row["step"]: row["valid_loss"] for row in rows}
    assert record["best_step"] == min(losses, key=losses.get) < 12, "made so that the last step is not the best"
    assert record["result"]["valid_loss"] == losses[record["best_step"]] and record["status"] == "finished"
    assert record["data"][data.as_posix()] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert f'--data {data}' in record["command"] and record["versions"]["torch"] == torch.__version__
    assert record["rows"]["valid"]["noted"] == {"also in --data, so that the validation is too kind": 1}
    model, tokenizer = load_model(tmp_path / "out")
    nll = []
    for row in held_out:                    # by hand, with torch's own cross entropy
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
    assert read(tmp_path / "out" / "run.json")["examples"] == {"train": 6, "valid": 0}


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo", "ppo", "pretrain"])
def test_an_adapter_is_a_model_too(verb, tmp_path, capsys):
    """With --lora the folder holds the adapter alone, beside an untouched base; --model takes it, and merge makes it plain."""
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
    torch.testing.assert_close(load_model(tmp_path / "merged")[0](ids), model(ids), atol=1e-5, rtol=0)
    if verb == "sft":           # an adapter upon an adapter has the first one merged for its base
        assert call("dpo", "--model", out, "--data", write(tmp_path / "p.jsonl", *PAIRS), "--out", tmp_path / "next", "--steps", 1,
                    *FEW) == 0
        with without_lora(open_model(tmp_path / "next")[0]) as upon:
            torch.testing.assert_close(upon(ids), model(ids), atol=1e-5, rtol=0)


@pytest.mark.parametrize("more", [[], FEW])
def test_dpo_starts_at_the_reference(more, tmp_path):
    """Before the first step the policy is the reference: the validation loss is ln 2, all rewards are 0, with LoRA or without."""
    assert call(*train_command("dpo", tmp_path, "out", *more)) == 0
    before = read(tmp_path / "out" / "run.json")["before"]
    assert before["valid_loss"] == pytest.approx(math.log(2), abs=1e-6) and abs(before["valid_margin"]) < 1e-4


@pytest.mark.parametrize("more", [[], FEW])
def test_reward_scores_are_normalised(more, tmp_path):
    """The saved model's scores of the answers it was trained on have mean 0 and standard deviation 1."""
    data = write(tmp_path / "few.jsonl", *PAIRS[:8])
    assert call("reward", "--model", save_tiny(tmp_path / "model"), "--data", data, "--out", tmp_path / "out", *more) == 0
    model, tokenizer = open_model(tmp_path / "out")
    batch = collate_pairs([encode_pair(tokenizer, *row.values(), 96) for row in PAIRS[:8]], tokenizer.pad_id)
    scores = torch.cat([model.last_scores(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"]) for side in ("chosen", "rejected")])
    assert scores.mean().item() == pytest.approx(0, abs=1e-5) and scores.std(unbiased=False).item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("more", [[], FEW])
def test_ppo_starts_at_the_reference_and_asks_the_function(more, tmp_path):
    """The first held-out KL is 0; the score is what the user's function says, which sees the prompts of the file."""
    command = train_command("ppo", tmp_path, "out", "--missing-eos-penalty", 0, *more)
    (tmp_path / "r.py").write_text("def score(prompts, responses):\n    assert all(p.startswith('Where is') for p in prompts)\n"
                                   "    return [3.5] * len(responses)\n", encoding="utf-8")
    assert call(*command) == 0
    record = read(tmp_path / "out" / "run.json")
    assert record["before"]["valid_kl"] == pytest.approx(0, abs=1e-5)
    assert record["before"]["valid_score"] == record["result"]["last_score"] == 3.5


def test_ppo_with_a_reward_model(tmp_path):
    """The folder that the verb reward writes is a judge for ppo, as a whole model and as an adapter."""
    model, pairs = prepare(tmp_path, PAIRS)
    for name, more in (("whole", []), ("adapter", FEW)):
        assert call("reward", "--model", model, "--data", pairs, "--out", tmp_path / name, "--steps", 1, *more) == 0
        command = train_command("ppo", tmp_path, f"{name}-ppo", *more)
        at = command.index("--reward-fn")
        command[at:at + 2] = ["--reward-model", tmp_path / name]
        assert call(*command) == 0


def test_pretrain_says_how_surprised_it_was(tmp_path, capsys):
    """Perplexity before and after is exp of the held-out loss; a sample of each goes on from the same words."""
    model, data = prepare(tmp_path, TEXTS)
    (tmp_path / "play.md").write_text(TEXTS[0]["text"] * 3, encoding="utf-8")
    assert call("pretrain", "--model", model, "--data", tmp_path / "*.jsonl", tmp_path / "*.md", "--valid", tmp_path / "play.md", "--out",
                tmp_path / "out", "--steps", 30, "--replay", data, "--lr", 0.01) == 0
    record, out = read(tmp_path / "out" / "run.json"), capsys.readouterr().out
    for moment in ("before", "result"):
        assert record[moment]["valid_perplexity"] == pytest.approx(math.exp(record[moment]["valid_loss"]))
    assert record["result"]["valid_perplexity"] < record["before"]["valid_perplexity"]
    samples = [record["result"][f"sample_{moment}"].split(">>>") for moment in ("before", "after")]
    assert samples[0][0] == samples[1][0] and TEXTS[0]["text"].startswith(samples[0][0]) and samples[0][1] != samples[1][1]
    assert "valid_perplexity" in out and len(record["data"]) == 2


# ---- stopping and going on ----


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
def test_ctrl_c_saves_and_resume_is_bit_equal(tmp_path, capsys):
    """Ctrl-C ends with exit code 130 and a sentence; --resume then gives, on the CPU, the very numbers of a run never stopped."""
    model, data = prepare(tmp_path, CHATS)
    words = ["sft", "--model", model, "--data", data, "--steps", "200", "--batch-size", "8", "--eval-every", "90", "--lr", "1e-4"]
    words = [str(word) for word in words]
    out, metrics = tmp_path / "stopped", tmp_path / "stopped" / "metrics.jsonl"
    process = subprocess.Popen([sys.executable, "-m", "minift", *words, "--out", str(out)], cwd=ROOT, stderr=subprocess.PIPE,
                               stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, encoding="utf-8")
    end = time.time() + 90
    while process.poll() is None and time.time() < end and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
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


@pytest.mark.parametrize("more", [[], FEW])
def test_ppo_is_stopped_and_resumed(more, tmp_path, capsys):
    """PPO stops after the iteration in which Ctrl-C came; resumed, it ends with the very numbers of a run never stopped."""
    command = train_command("ppo", tmp_path, "whole", "--iterations", 4, *more)
    assert call(*command) == 0
    command[command.index(tmp_path / "whole")] = tmp_path / "stopped"
    working = (tmp_path / "r.py").read_text(encoding="utf-8")
    stopping = "    calls.append(1)\n    if len(calls) == 4:\n        signal.raise_signal(signal.SIGINT)\n    return"
    (tmp_path / "r.py").write_text(f"import signal\ncalls = []\n{working.replace('    return', stopping)}", encoding="utf-8")
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
    write(tmp_path / "sft.jsonl", *CHATS[1:])
    assert call(*command, "--resume") == 2
    assert record["data"][(tmp_path / "sft.jsonl").as_posix()][:20] in capsys.readouterr().err


# ---- using a model ----


def test_generate_answers_a_file(tmp_path, capsys):
    """JSONL in, JSONL out, in order, rows with all they had; one prompt alone gives the same greedy answer."""
    model, data = prepare(tmp_path, [{**row, "id": i} for i, row in enumerate(PROMPTS[:5])] + TEXTS[:1])
    common = ["--model", model, "--temperature", 0, "--max-new-tokens", 6]
    assert call("generate", *common, "--data", data, "--out", tmp_path / "out.jsonl", "--batch-size", 2) == 0
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row.get("id") for row in rows] == [0, 1, 2, 3, 4, None] and [row["prompt"] for row in rows[:5]] == [row["prompt"] for row in PROMPTS[:5]]
    capsys.readouterr()
    for row in (rows[1], rows[4]):
        assert call("generate", *common, "--prompt", row["prompt"]) == 0
        assert capsys.readouterr().out == row["completion"] + "\n"
    assert call("generate", *common, "--prompt", TEXTS[0]["text"], "--raw") == 0
    assert capsys.readouterr().out == rows[5]["completion"] + "\n"
    assert call("generate", *common, "--data", data, "--out", tmp_path / "out.jsonl") == 2


def test_a_chat_is_held_until_the_end_of_input(tmp_path, monkeypatch, capsys):
    """Each answer is written as it comes; the second prompt holds the first exchange; /quit or the end of the input ends it."""
    model = save_tiny(tmp_path / "model")
    said, prompts = iter(["fox", "kite", "/quit", "never"]), []

    def stream_text(model, tokenizer, prompt, **settings):
        prompts.append(tokenizer.decode(prompt))
        yield from ("the ", "mill")
    monkeypatch.setattr("builtins.input", lambda label: next(said))
    monkeypatch.setattr(use, "stream_text", stream_text)
    assert call("chat", "--model", model, "--system", "Be.") == 0
    assert prompts == ["<system>Be.<user>fox<assistant>",
                       "<system>Be.<user>fox<assistant>the mill<eos><user>kite<assistant>"]
    assert capsys.readouterr().out.count("model: the mill\n") == 2

    def end(label):
        raise EOFError
    monkeypatch.setattr("builtins.input", end)
    assert call("chat", "--model", model) == 0


def test_evaluate_measures_each_form(tmp_path, capsys):
    """One file of each form gives perplexity, exact match and pair accuracy; a model against itself has no implicit reward."""
    model = save_tiny(tmp_path / "model")
    files = [write(tmp_path / f"{i}.jsonl", *rows[:4]) for i, rows in enumerate((TEXTS, CHATS, PAIRS))]
    assert call("evaluate", "--model", model, "--data", *files, "--reference", model, "--out", tmp_path / "e.json", "--max-new-tokens", 4) == 0
    found = read(tmp_path / "e.json")
    assert found["implicit_reward_accuracy"] == 0 and found["gap"] == pytest.approx(0, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"])) and found["exact_match"] == 0 and found["answers"] == 4
    capsys.readouterr()
    reward_model = save_tiny(tmp_path / "reward", "TokenScorer")
    assert call("evaluate", "--model", reward_model, "--data", files[2]) == 0 and "pair_accuracy" in capsys.readouterr().out
    assert call("evaluate", "--model", reward_model, "--data", files[0]) == 2


def test_check_data_shows_all_problems(tmp_path, capsys):
    """Every bad row is listed with its place; good rows are counted by form, with what is learned; the exit code is 2."""
    model, data = prepare(tmp_path, [CHATS[0], "{", CHATS[0], PAIRS[0], {"prompt": 1}, {"messages": [{"role": "bot", "content": "x"}]}])
    assert call("check-data", "--model", model, "--data", data) == 2
    captured = capsys.readouterr()
    problems = [line for line in captured.out.splitlines() if line.startswith("problem: ")]
    assert [problem.split(": ")[1] for problem in problems] == [f"{data}:2", f"{data}:5", f"{data}:6[0]"]
    assert "<user>Where is Ada?<assistant>«Ada is at the mill.<eos>»" in captured.out and "1 the same as an earlier row" in captured.out
    assert captured.err.count("\n") == 1 and "3 rows are bad" in captured.err
    assert call("check-data", "--model", model, "--data", write(tmp_path / "good.jsonl", *CHATS)) == 0
    out = capsys.readouterr().out
    assert "tokens/s" in out and "MiB" in out


# ---- mistakes ----


def mistakes(tmp_path):
    """name -> (command, what the error says)."""
    model, data = prepare(tmp_path, CHATS)
    out = tmp_path / "out"
    pairs, prompts = write(tmp_path / "pairs.jsonl", *PAIRS), write(tmp_path / "prompts.jsonl", *PROMPTS)
    reward_model = save_tiny(tmp_path / "reward", "TokenScorer")
    save_model(make_model(context_length=40), make_tokenizer(), tmp_path / "short")
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:-50])
    for name, body in {"nan": "[float('nan')] * len(r)", "few": "[1.0]", "bad": "1 / 0"}.items():
        (tmp_path / f"{name}.py").write_text(f"def f(p, r):\n    return {body}\n", encoding="utf-8")

    def bad(name, *rows):
        return sft(write(tmp_path / f"{name}.jsonl", *rows))

    def sft(file=data, *more):
        return ["sft", "--model", model, "--data", file, "--out", out, *more]

    def ppo(*more):
        return ["ppo", "--model", model, "--data", prompts, "--out", out, "--max-new-tokens", 4, "--batch-size", 4, *more]
    dpo = ["dpo", "--model", model, "--data", pairs, "--out", out]
    same = [{"prompt": "p", "chosen": "x", "rejected": "x"}] * 3
    long = [{"prompt": "word " * 200, "completion": "x"}] * 2
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    return {
        "no verb": ([], "VERB"), "unknown verb": (["fly"], "fly"), "unknown option": (sft(data, "--fly"), "--fly"),
        "no data": (["sft", "--model", model, "--out", out], "--data"), "empty file": (bad("empty"), "dataset is empty: "),
        "bad JSON": (bad("json", CHATS[0], "{"), "json.jsonl:2: invalid JSON"), "not UTF-8": (bad("latin", b'{"text": "\xe9"}'), "latin.jsonl:1: not UTF-8"),
        "a list": (bad("list", [1]), "list.jsonl:1: expected an object"), "missing key": (bad("key", {"promt": "x"}), "key.jsonl:1"),
        "null": (bad("null", {"prompt": "x", "completion": None}), "null.jsonl:1"), "wrong type": (bad("type", {"prompt": 3, "completion": "x"}), "type.jsonl:1"),
        "unknown role": (bad("role", {"messages": [{"role": "bot", "content": "x"}]}), "role.jsonl:1[0]: unknown role"),
        "two user turns": (bad("turns", {"messages": turns}), "turns.jsonl:1[1]"), "no answer": (bad("none", {"messages": turns[:1]}), "none.jsonl:1: no assistant"),
        "empty messages": (bad("void", {"messages": []}), "void.jsonl:1"), "empty answer": (bad("blank", {"prompt": "x", "completion": " "}), "blank.jsonl:1"),
        "all too long": (bad("long", *long), "2 dropped: no answer within"), "wrong form": (sft(pairs), "pairs.jsonl:1: expected an object with the keys"),
        "all alike": ([*dpo[:4], write(tmp_path / "same.jsonl", *same), *dpo[5:]], "3 dropped: chosen and rejected are the same"),
        "no such file": (sft(tmp_path / "nothing*.jsonl"), "no file matches"), "a folder as data": (sft(tmp_path), "is a folder"),
        "no such model": (["sft", "--model", tmp_path / "no", "--data", data, "--out", out], "is missing"),
        "not a model": (["sft", "--model", tmp_path, "--data", data, "--out", out], "config.json"),
        "truncated model": (["sft", "--model", broken, "--data", data, "--out", out], "truncated"),
        "a reward model to tune": (["sft", "--model", reward_model, "--data", data, "--out", out], "is a reward model; sft needs a language model"),
        "out is the model": (["sft", "--model", model, "--data", data, "--out", model, "--overwrite"], "read from"),
        "out is a file": (["sft", "--model", model, "--data", data, "--out", data], "is a file"),
        "out cannot be": (["sft", "--model", model, "--data", data, "--out", data / "x"], "cannot write"),
        "out in use": (["sft", "--model", model, "--data", data, "--out", reward_model], "not empty"),
        "nothing to resume": (sft(data, "--resume"), "no run that was stopped"),
        "rank 0": (sft(data, "--lora", 0), "--lora"), "rank too large": (sft(data, "--lora", 17), "rank is 17"),
        "lr 0": (sft(data, "--lr", 0), "--lr"), "lr nan": (sft(data, "--lr", "nan"), "--lr"), "batch 0": (sft(data, "--batch-size", 0), "--batch-size"),
        "no steps": (sft(data, "--steps", 0), "--steps"), "long context": (sft(data, "--context", 97), "context of 96"),
        "no such device": (sft(data, "--device", "mps" if torch.cuda.is_available() else "cuda"), "--device"),
        "bfloat16 on a CPU": (sft(data, "--dtype", "bfloat16", "--device", "cpu"), "bfloat16"),
        "beta 0": ([*dpo, "--beta", 0], "--beta"), "smoothing": ([*dpo, "--label-smoothing", 0.5], "--label-smoothing"),
        "no reward": (ppo(), "one of --reward-model"), "two rewards": (ppo("--reward-model", reward_model, "--reward-fn", "a.py:f"), "one of --reward-model"),
        "no such function": (ppo("--reward-fn", f"{tmp_path / 'nan.py'}:g"), "no function called g"), "not a file": (ppo("--reward-fn", "no.py:f"), "expected"),
        "nan reward": (ppo("--reward-fn", f"{tmp_path / 'nan.py'}:f"), "returned nan"), "too few rewards": (ppo("--reward-fn", f"{tmp_path / 'few.py'}:f"), "1 numbers for"),
        "a broken function": (ppo("--reward-fn", f"{tmp_path / 'bad.py'}:f"), "bad.py:2 raised ZeroDivisionError"),
        "a language model as judge": (ppo("--reward-model", model), "--reward-model needs a reward model"),
        "negative beta": (ppo("--reward-fn", f"{tmp_path / 'nan.py'}:f", "--beta", -1), "--beta"),
        "no room": (["ppo", "--model", tmp_path / "short", "--data", prompts, "--out", out, "--max-new-tokens", 39, "--reward-fn", f"{tmp_path / 'nan.py'}:f"], "no room to answer"),
        "nothing to generate": (["generate", "--model", model], "one of --prompt"), "temperature": (["generate", "--model", model, "--prompt", "x", "--temperature", -1], "--temperature"),
        "top-p": (["generate", "--model", model, "--prompt", "x", "--top-p", 0], "--top-p"), "empty prompt": (["generate", "--model", model, "--prompt", "", "--raw"], "is empty"),
        "prompt too long": (["generate", "--model", model, "--prompt", "word " * 99], "shorten"), "raw messages": (["generate", "--model", model, "--raw", "--data", write(
            tmp_path / "chat.jsonl", {"prompt": turns[:1]})], "chat.jsonl:1: with --raw"),
        "nothing to merge": (["merge", "--model", model, "--out", out], "nothing to merge"), "pretrain on nothing": (["pretrain", "--out", out], "--model DIR and --data"),
        "unknown stage": (["tour", "--stages", "nap", "--out", out], "nap"),
    }


def test_mistakes_are_one_sentence_before_any_training(tmp_path, capfd):
    """Whatever the mistake: exit code 2, one line on stderr that says what and where, no traceback, no step taken."""
    for name, (command, sign) in mistakes(tmp_path).items():
        capfd.readouterr()
        code = call(*command)
        captured = capfd.readouterr()
        lines = [line for line in captured.err.replace("\r", "\n").splitlines() if line and "it/s" not in line and "%|" not in line]
        assert code == 2 and len(lines) == 1, f"{name}: {code}, {captured.err}"
        assert sign in lines[0] and lines[0].startswith("minift: "), f"{name}: {lines[0]}"
        assert not (tmp_path / "out" / "metrics.jsonl").exists() or "ppo" in command, f"{name}: training had begun"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)


def test_judge_and_policy_read_alike(tmp_path, capsys):
    """A reward model or a reference with another tokenizer is refused: the same ids would be other words to it."""
    from minift.core.tokenizer import Tokenizer
    command = train_command("ppo", tmp_path)
    other = Tokenizer.train(["quite other words here, quite other"], 300)
    save_model(make_model("TokenScorer"), other, tmp_path / "judge")
    save_model(make_model(), other, tmp_path / "reference")
    at = command.index("--reward-fn")
    command[at:at + 2] = ["--reward-model", tmp_path / "judge"]
    assert call(*command) == 2 and "different tokenizers" in capsys.readouterr().err
    pairs = write(tmp_path / "p.jsonl", *PAIRS)
    assert call("evaluate", "--model", tmp_path / "model", "--data", pairs, "--reference", tmp_path / "reference") == 2


def test_an_adapter_finds_its_base_or_says_so(tmp_path, capsys):
    """An adapter whose base is gone, or has other weights, is refused by name."""
    assert call(*train_command("sft", tmp_path, "out", "--lora", 2)) == 0
    save_tiny(tmp_path / "model", seed=1)
    assert call("generate", "--model", tmp_path / "out", "--prompt", "x") == 2 and "other weights" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "model")
    assert call("generate", "--model", tmp_path / "out", "--prompt", "x") == 2 and "is an adapter for the model" in capsys.readouterr().err


def test_a_diverging_run_keeps_what_was_good(tmp_path, capsys):
    """A loss that is not finite stops the run with exit code 2 and the step; no NaN is ever saved, and run.json says failed."""
    command = train_command("sft", tmp_path, "out", "--lr", 1e30, "--steps", 9)
    assert call(*command) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step " in error and "Traceback" not in error
    assert read(tmp_path / "out" / "run.json")["status"].startswith("failed: step")
    if (tmp_path / "out" / "model.safetensors").exists():
        assert all(torch.isfinite(p).all() for p in load_model(tmp_path / "out")[0].parameters())
    assert call(*command[:-4]) == 2 and "--overwrite" in capsys.readouterr().err
    assert call(*command[:-4], "--overwrite") == 0


# ---- help, and examples that work as written ----


def test_help_answers_at_once_and_fits_a_screen(capsys):
    """Every verb's help is at most 40 lines and ends with its example; understanding a command does not load PyTorch."""
    for verb in VERBS:
        with pytest.raises(SystemExit) as stop:
            call(verb, "--help")
        lines = capsys.readouterr().out.rstrip().splitlines()
        assert stop.value.code == 0 and len(lines) <= 40, verb
        assert lines[-1].startswith("  python -m minift ") and not any(len(line) > 100 for line in lines if "python" not in line), verb
    code = "import sys, minift.__main__ as m\ntry: m.main(['sft', '--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def layout(tmp_path, monkeypatch):
    """A working directory with the repository's data/ in it; fails loudly when data/base is missing."""
    assert (ROOT / "data" / "base" / "model.safetensors").exists(), "data/base is missing: python -m minift pretrain --recipe base --out data/base"
    try:
        (tmp_path / "data").symlink_to(ROOT / "data", target_is_directory=True)
    except OSError:             # Windows without the right to make links
        shutil.copytree(ROOT / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)


def short(line):
    """The words of a `python -m minift` line, made short by the last word on the number of steps and tokens."""
    words = shlex.split(line)[3:]
    more = {"ppo": "--iterations 1 --max-new-tokens 8 --batch-size 4", "generate": "--max-new-tokens 8",
            "evaluate": "--max-new-tokens 8", "chat": "--max-new-tokens 8", "merge": "", "check-data": ""}
    return words + more.get(words[0], "--steps 2 --batch-size 4").split()


def readme_lines():
    lines = [line.strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line.startswith("python -m minift ")]
    left_out = ("python -m minift tour", "python -m minift chat", "python -m minift pretrain --recipe")
    return [line for line in lines if not line.startswith(left_out) and "plays/" not in line]


def test_examples_of_the_readme_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """Each `python -m minift` line of the README, in order, in a fresh copy of the repository's layout."""
    layout(tmp_path, monkeypatch)
    assert len(readme_lines()) >= 8, "the README shows how to use one's own data"
    for line in readme_lines():
        assert call(*short(line)) == 0, f"{line}\n{capsys.readouterr().err}"


def test_examples_of_the_help_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """The example under each verb's --help; those that the README shows as well are run there."""
    layout(tmp_path, monkeypatch)
    monkeypatch.setattr("builtins.input", lambda label, said=iter(["Who is there?", "/quit"]): next(said))
    shown = readme_lines() if (ROOT / "README.md").exists() else []
    for verb, (_, _, examples) in VERBS.items():
        lines = [f"python -m minift {example}" for example in examples]
        if verb != "tour" and not all(line in shown for line in lines):
            for line in lines:
                assert call(*short(line)) == 0, f"{line}\n{capsys.readouterr().err}"


def test_samples_are_as_their_names_say(tmp_path):
    """data/samples holds a file of each form, small, every row of it usable."""
    from minift.jobs.data import FORMS, read_rows
    samples = ROOT / "data" / "samples"
    forms = {"text": "text", "messages": "messages", "completions": "completion", "pairs": "pair", "prompts": "prompt"}
    assert set(forms.values()) == set(FORMS)
    for name, form in forms.items():
        rows = read_rows([samples / f"{name}.jsonl"], (form,))
        assert 20 <= len({row.key() for row in rows}) == len(rows) and (samples / f"{name}.jsonl").stat().st_size < 60_000
