"""What the command line says to a mistake: one sentence that names it, exit code 2, before any work is done."""

import shutil

import pytest
import torch
from test_cli import CHATS, PAIRS, PROMPTS, TEXTS, call, read, train_command
from test_encoder_jobs import ROWS, save_classifier, save_encoder
from test_jobs import make_model, make_tokenizer, save_tiny, write

from minift.formats.checkpoint import load_model, save_model
from minift.text.tokenizer import Tokenizer

TURNS = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]

# files of one bad kind each: name -> (rows, what `sft` says to it)
BAD_DATA = {
    "empty": ([], "dataset is empty: "),
    "json": ([CHATS[0], "{"], "json.jsonl:2: invalid JSON"),
    "latin": ([b'{"text": "\xe9"}'], "latin.jsonl:1: not UTF-8"),
    "list": ([[1]], "list.jsonl:1: expected an object"),
    "key": ([{"promt": "x"}], "key.jsonl:1: expected an object with the keys"),
    "null": ([{"prompt": "x", "completion": None}], "null.jsonl:1: expected an object with the keys"),
    "nan": ([b'{"prompt": "x", "completion": "y", "reward": NaN}'], "nan.jsonl:1: NaN is not a finite number"),
    "type": ([{"prompt": 3, "completion": "x"}], "type.jsonl:1: 'prompt' must be"),
    "role": ([{"messages": [{"role": "bot", "content": "x"}]}], "role.jsonl:1[0]: unknown role"),
    "turns": ([{"messages": TURNS}], "turns.jsonl:1[1]: a turn of the role 'user'"),
    "none": ([{"messages": TURNS[:1]}], "none.jsonl:1: no assistant turn"),
    "void": ([{"messages": []}], "void.jsonl:1: expected a list of messages"),
    "blank": ([{"prompt": "x", "completion": " "}], "blank.jsonl:1[1]: the assistant's content is empty"),
    "long": ([{"prompt": "word " * 200, "completion": "x"}] * 2, "2 dropped: no answer within 96 tokens"),
    "pairs": (PAIRS, "pairs.jsonl:1: expected an object with the keys"),
}

# the same for `classify`
BAD_LABELS = {
    "float": ([ROWS[0], {"text": "x", "label": 0.5}], "float.jsonl:2: 'label' must be a string or a whole number"),
    "truth": ([{"text": "x", "label": True}], "truth.jsonl:1: 'label' must be a string or a whole number"),
    "null": ([{"text": "x", "label": None}], "null.jsonl:1: expected an object with the keys {text, label}, none"),
    "no": ([ROWS[0], {"text": "x"}], "no.jsonl:2: expected an object with the keys {text, label}"),
    "blank": ([{"text": "x", "label": " "}], "blank.jsonl:1: 'label' is empty"),
    "list": ([{"text": ["x"], "label": "a"}], "list.jsonl:1: 'text' must be a string"),
    "pair": ([{"text": "x", "text_pair": 3, "label": "a"}], "pair.jsonl:1: 'text_pair' must be a string"),
    "void": ([{"text": " ", "label": "a"}] * 2, "dataset is empty: nothing is left"),
    "one": (ROWS[::2], "training rows have the label 'glad'; a classifier needs at least 2"),
}

# commands and what is said to them; @name is a file or folder that test_... has made, or has not
SFT, GENERATE = "sft --model @model --data @chats.jsonl --out @out", "generate --model @model"
DPO = "dpo --model @model --data @pairs.jsonl --out @out"
PPO = "ppo --model @model --data @prompts.jsonl --out @out --max-new-tokens 4"
MLM = "mlm --model @encoder --data @texts.jsonl --out @out"
CLASSIFY = "classify --model @encoder --data @labels.jsonl --out @out"
PREDICT = "classify --model @classifier --predict"
MISTAKES = {
    "": "VERB", "fly": "fly", "sft --model @model --out @out": "--data", f"{SFT} --fly": "--fly",
    "sft --model @model --data @nothing*.jsonl --out @out": "no file matches",
    "sft --model @model --data @model --out @out": "is a folder; name its files",
    "sft --model @nowhere --data @chats.jsonl --out @out": "is missing",
    "sft --model @empty --data @chats.jsonl --out @out": "has no config.json",
    "sft --model @broken --data @chats.jsonl --out @out": "is truncated",
    "sft --model @judge --data @chats.jsonl --out @out": "is a reward model; sft needs a language model",
    "sft --model @model --data @chats.jsonl --out @model --overwrite": "is where the model is read from",
    "sft --model @model --data @chats.jsonl --out @chats.jsonl": "is a file",
    "sft --model @model --data @chats.jsonl --out @chats.jsonl/x": "cannot write",
    "sft --model @model --data @chats.jsonl --out @judge": "is not empty",
    f"{SFT} --resume": "holds no run that was stopped", f"{SFT} --valid @chats.jsonl": "is in --valid too",
    f"{SFT} --lora 0": "--lora: expected a whole number", f"{SFT} --lora 17": "rank is 17",
    f"{SFT} --lr 0": "--lr: expected a number above 0", f"{SFT} --lr nan": "--lr: expected a number",
    f"{SFT} --batch-size 0": "--batch-size", f"{SFT} --steps 0": "--steps", f"{SFT} --context 97": "context of 96",
    f"{SFT} --dtype bfloat16 --device cpu": "bfloat16 is slower", f"{SFT} --device tpu": "--device",
    f"{DPO} --beta 0": "--beta: expected a number above 0", f"{DPO} --label-smoothing 0.5": "--label-smoothing",
    "dpo --model @model --data @same.jsonl --out @out": "3 dropped: chosen and rejected are the same",
    "ppo --model @model --data @prompts.jsonl --out @out": "one of --reward-model",
    f"{PPO} --reward-model @judge --reward-fn @nan.py:f": "one of --reward-model",
    f"{PPO} --reward-model @model": "--reward-model needs a reward model",
    f"{PPO} --reward-model @short": "add --context 40",
    f"{PPO} --reward-fn @no.py:f": "expected a Python file", f"{PPO} --reward-fn @nan.py:g": "no function called g",
    f"{PPO} --reward-fn @nan.py:f --beta -1": "--beta", f"{PPO} --reward-fn @nan.py:f": "returned nan",
    f"{PPO} --reward-fn @few.py:f": "1 numbers for 2 responses",
    f"{PPO} --reward-fn @bad.py:f": "bad.py:2 raised OSError: a b",
    f"{PPO} --reward-fn @nan.py:f --max-new-tokens 94": "leaves no room to answer",
    GENERATE: "one of --prompt", f"{GENERATE} --prompt x --temperature -1": "--temperature",
    f"{GENERATE} --prompt x --top-p 0": "--top-p", f"{GENERATE} --prompt x --out @chats.jsonl": "exists",
    f"{GENERATE} --raw --data @chat.jsonl": "chat.jsonl:1: with --raw",
    f"{GENERATE} --data @wordy.jsonl": "wordy.jsonl:1: the prompt has",
    f"{GENERATE} --prompt x --max-new-tokens 96": "lower --max",
    "evaluate --model @judge --data @chats.jsonl": "is a reward model",
    "merge --model @model --out @out": "nothing to merge",
    "pretrain --out @out": "--model DIR and --data", "mlm --out @out": "--model DIR and --data",
    "mlm --model @model --data @texts.jsonl --out @out": "is a language model; mlm needs an encoder",
    "mlm --model @classifier --data @texts.jsonl --out @out": "is a classifier; mlm needs an encoder",
    f"{MLM} --hidden 0": "--hidden: expected a number above 0", f"{MLM} --hidden 1": "--hidden: expected a number",
    f"{MLM} --lora 8": "--lora: an encoder is trained whole", f"{MLM} --context 2": "take at least 3",
    f"{MLM} --context 49": "context of 48", f"{MLM} --recipe base": "--recipe", f"{MLM} --resume": "no run that was",
    "mlm --model @encoder --data @chats.jsonl --out @out": "chats.jsonl:1: expected an object with the keys {text}",
    "classify --model @encoder": "needs one of --data", f"{CLASSIFY} --predict @texts.jsonl": "needs one of --data",
    "classify --model @encoder --data @labels.jsonl": "needs --out DIR", f"{CLASSIFY} --lora": "--lora: an encoder is",
    f"{CLASSIFY} --full --freeze": "not allowed with", f"{CLASSIFY} --pooling max": "--pooling",
    f"{CLASSIFY} --epochs 3": "--epochs: of no use with --freeze", f"{CLASSIFY} --resume": "no run that was stopped",
    f"{CLASSIFY} --valid @new.jsonl": "new.jsonl:2: the label 'angry' is new; the training rows have 'glad', 'sorry'",
    f"{CLASSIFY} --full --lr 0": "--lr", f"{CLASSIFY} --context 2": "the special tokens alone fill it",
    "classify --model @model --data @labels.jsonl --out @out": "is a language model; classify needs an encoder",
    "classify --model @classifier --data @labels.jsonl --out @out": "is a classifier; classify needs an encoder",
    "classify --model @encoder --predict @texts.jsonl": "is an encoder (a masked language model); classify --predict",
    "classify --model @judge --predict @texts.jsonl": "is a reward model; classify --predict needs a classifier",
    f"{PREDICT} @texts.jsonl --out @chats.jsonl": "exists", f"{PREDICT} @texts.jsonl --full": "trains nothing",
    f"{PREDICT} @texts.jsonl --valid @labels.jsonl": "trains nothing", f"{PREDICT} @no.jsonl": "no file matches",
    f"{PREDICT} @chats.jsonl": "chats.jsonl:1: expected an object with the keys {text}",
    f"{PREDICT} @hollow.jsonl": "dataset is empty: no text is left",
    "sft --model @encoder --data @chats.jsonl --out @out": "is an encoder (a masked language model); sft needs",
    "evaluate --model @encoder --data @texts.jsonl": "is an encoder (a masked language model); evaluate needs",
    "evaluate --model @classifier --data @texts.jsonl": "texts.jsonl:1: expected an object with the keys {text, label}",
    "evaluate --model @classifier --data @new.jsonl": "new.jsonl:2: the label 'angry' is new; the classifier knows",
    "check-data --model @classifier --data @labels.jsonl": "is a classifier; check-data needs a language model or an",
    "tour --stages nap --out @out": "nap",
}


def prepare(folder):
    """Everything that MISTAKES names, good and bad."""
    save_tiny(folder / "model")
    save_tiny(folder / "judge", "TokenScorer")
    save_tiny(folder / "short", "TokenScorer", context_length=40)
    save_encoder(folder / "encoder")
    save_classifier(folder / "classifier")
    (folder / "empty").mkdir()
    broken = shutil.copytree(folder / "model", folder / "broken") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-50])
    files = {"chats": CHATS, "pairs": PAIRS, "prompts": PROMPTS, "chat": [{"prompt": TURNS[:1]}], "labels": ROWS,
             "texts": TEXTS, "new": [ROWS[0], {"text": "x", "label": "angry"}], "hollow": [{"text": " "}],
             "same": [{"prompt": "p", "chosen": "x", "rejected": "x"}] * 3, "wordy": [{"prompt": "word " * 99}]}
    for name, rows in files.items():
        write(folder / f"{name}.jsonl", *rows)
    for name, body in {"nan": "[float('nan')] * len(r)", "few": "[1.0]", "bad": "(i for i in r).throw(OSError('a\\nb'))"}.items():  # noqa: E501
        (folder / f"{name}.py").write_text(f"def f(p, r):\n    return {body}\n", encoding="utf-8")


def complaint(capfd, *words):
    """What a command that must fail says: exit code 2 and one line."""
    capfd.readouterr()
    code = call(*words)
    err = capfd.readouterr().err
    assert code == 2 and err.startswith("minift: ") and err.count("\n") == 1, f"{words}: {code}, {err}"
    return err


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_named(name, tmp_path, capfd):
    """A bad row stops before the training, with its file and line; so does a file of which no row is left."""
    rows, sign = BAD_DATA[name]
    data = write(tmp_path / f"{name}.jsonl", *rows)
    model = save_tiny(tmp_path / "model")
    assert sign in complaint(capfd, "sft", "--model", model, "--data", data, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("name", BAD_LABELS)
def test_bad_labels_are_named(name, tmp_path, capfd):
    """What is wrong with a labelled row stops before the training, with its file and line."""
    rows, sign = BAD_LABELS[name]
    words = ["--model", save_encoder(tmp_path / "model"), "--data", write(tmp_path / f"{name}.jsonl", *rows)]
    assert sign in complaint(capfd, "classify", *words, "--out", tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_mistakes_are_one_sentence(tmp_path, capfd):
    """Whatever the mistake: exit code 2, one line on stderr that says what is wrong, no traceback, no step taken."""
    prepare(tmp_path)
    for command, sign in MISTAKES.items():
        words = [f"{tmp_path}/{word[1:]}" if word.startswith("@") else word for word in command.split()]
        assert sign in complaint(capfd, *words), command
        assert not (tmp_path / "out" / "metrics.jsonl").exists(), f"{command}: training had begun"
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for device in (device for device in there if not there[device]):
        words = [f"{tmp_path}/{word[1:]}" if word.startswith("@") else word for word in SFT.split()]
        assert "on this machine" in complaint(capfd, *words, "--device", device)


def test_judge_and_policy_read_alike(tmp_path, capfd):
    """A reward model or a reference with another tokenizer is refused: the same ids would be other words to it."""
    command = train_command("ppo", tmp_path)
    other = Tokenizer.train(["quite other words here, quite other"], 300)
    save_model(make_model("TokenScorer"), other, tmp_path / "judge")
    save_model(make_model(), other, tmp_path / "reference")
    at = command.index("--reward-fn")
    command[at:at + 2] = ["--reward-model", tmp_path / "judge"]
    assert "different tokenizers" in complaint(capfd, *command)
    pairs = write(tmp_path / "p.jsonl", *PAIRS)
    words = ["evaluate", "--model", tmp_path / "model", "--data", pairs, "--reference", tmp_path / "reference"]
    assert "different tokenizers" in complaint(capfd, *words)
    assert make_tokenizer().hash() != other.hash()


def test_an_adapter_finds_its_base_or_says_so(tmp_path, capfd):
    """An adapter whose base is gone, or has other weights, is refused by name."""
    assert call(*train_command("sft", tmp_path, "out", "--lora", 2)) == 0
    generate = ["generate", "--model", tmp_path / "out", "--prompt", "x"]
    save_tiny(tmp_path / "model", seed=1)
    assert "other weights" in complaint(capfd, *generate)
    shutil.rmtree(tmp_path / "model")
    assert "is an adapter for the model" in complaint(capfd, *generate)


def test_a_diverging_run_keeps_what_was_good(tmp_path, capsys):
    """A loss that is not finite stops the run with exit code 2 and the step; no NaN is saved, run.json says failed."""
    command = train_command("sft", tmp_path)
    assert call(*command, "--lr", 1e30, "--steps", 9) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "step " in error and "Traceback" not in error
    assert read(tmp_path / "out" / "run.json")["status"].startswith("failed: step")
    if (tmp_path / "out" / "model.safetensors").exists():
        assert all(torch.isfinite(p).all() for p in load_model(tmp_path / "out")[0].parameters())
    assert call(*command) == 2 and "--overwrite" in capsys.readouterr().err
    assert call(*command, "--overwrite") == 0
