"""The verb dpo with each loss of its family, rows of single answers, and margins."""

import json

import pytest
import torch
from test_cli import NAMES, PAIRS, assert_same_bits, call, prepare, read, train_command
from test_jobs import make_tokenizer, write
from test_wiring import watch

from minift.cli import dpo as verb
from minift.cli import encoders, run
from minift.cli.examples import Tally
from minift.cli.rows import read_rows
from minift.methods import dpo, kto, reward
from minift.text.chat import encode_answer, encode_prompt

JUDGED = [{"prompt": f"Where is {name}?", "completion": f"{name} is at the mill.", "label": place % 2 == 0}
          for place, name in enumerate(NAMES)]


@pytest.mark.parametrize("more", [[], ["--lora", "2"]])
@pytest.mark.parametrize("loss", verb.LOSSES)
def test_every_loss_trains(loss, more, tmp_path):
    """Each loss of the family changes the weights; a loss with a reference begins at its known value."""
    command = train_command("dpo", tmp_path, "out", "--loss", loss, "--lr", 0.01, *more)
    command += ["--label-smoothing", 0.1] if loss == "robust" else []
    assert call(*command) == 0
    record = read(tmp_path / "out" / "run.json")
    start = {"dpo": 0.693147, "ipo": 25.0, "hinge": 1.0, "robust": 0.693147, "kto": 0.5}
    if loss in start:
        assert record["before"]["valid_loss"] == pytest.approx(start[loss], abs=1e-4)
    assert record["loss"][0] != record["loss"][1]
    # DPO's beta .1: TRL's and the paper's; SimPO's is another quantity, 2 in the paper.
    assert record["settings"]["beta"] == (2.0 if loss == "simpo" else 0.1)


@pytest.mark.parametrize("loss, module, name, argument", [
    ("dpo", dpo, "dpo_loss", "beta"), ("ipo", dpo, "ipo_loss", "beta"), ("hinge", dpo, "hinge_loss", "beta"),
    ("robust", dpo, "robust_loss", "beta"), ("simpo", dpo, "simpo_loss", "beta"), ("orpo", dpo, "orpo_loss", "weight"),
    ("kto", kto, "kto_loss", "beta")])
def test_beta_reaches_each_loss(loss, module, name, argument, tmp_path, monkeypatch):
    """With orpo it is the weight of the odds ratio. SimPO and ORPO compute no reference, the others compute one."""
    places = [(module, name), (dpo, "add_reference_logprobs")]
    seen = watch(monkeypatch, *places)
    command = train_command("dpo", tmp_path, "out", "--loss", loss, "--beta", 0.7)
    assert call(*command, *(["--label-smoothing", 0.2] if loss == "robust" else [])) == 0
    assert seen[name][argument] == 0.7 and seen[name].get("label_smoothing", 0.2) == (0.0 if loss == "dpo" else 0.2)
    assert ("add_reference_logprobs" in seen) == (loss not in ("simpo", "orpo"))


@pytest.mark.parametrize("more", [[], ["--lora", "2"]])
def test_kto_is_resumed(more, tmp_path):
    """A run of KTO that was stopped ends with the weights of one that was not."""
    data = write(tmp_path / "judged.jsonl", *JUDGED)
    model, _ = prepare(tmp_path, PAIRS)
    words = ["dpo", "--model", model, "--data", data, "--loss", "kto", "--batch-size", 8, "--eval-every", 2, *more]
    assert call(*words, "--steps", 4, "--out", tmp_path / "whole") == 0
    with pytest.MonkeyPatch.context() as patch:
        seen, make = [], kto.make_kto_loss

        def stopping(*args, **kwargs):
            loss_fn = make(*args, **kwargs)

            def counted(batch):
                seen.append(1)
                if torch.is_grad_enabled() and sum(seen) > 4:
                    raise KeyboardInterrupt
                return loss_fn(batch)
            return counted
        patch.setattr(kto, "make_kto_loss", stopping)
        assert call(*words, "--steps", 4, "--out", tmp_path / "stopped") == 130
    assert call(*words, "--steps", 4, "--out", tmp_path / "stopped", "--resume") == 0
    name = "adapter_model.safetensors" if more else "model.safetensors"
    assert_same_bits(tmp_path / "stopped" / name, tmp_path / "whole" / name)


def test_the_validation_of_kto_is_always_the_same(tmp_path, monkeypatch):
    """Two passes give the same rows with the same other answers; two commands give the same validation loss."""
    model, _ = prepare(tmp_path, PAIRS)
    words = ["dpo", "--model", model, "--data", write(tmp_path / "judged.jsonl", *JUDGED), "--loss", "kto"]
    words += ["--valid", write(tmp_path / "valid.jsonl", *JUDGED[:9]), "--batch-size", 4, "--steps", 3, "--lr", 0.01]
    seen, train = [], run.Run.train

    def look(self, loss_fn, batches, valid_batches):
        first, second = list(valid_batches), list(valid_batches)
        assert [len(batch["wanted"]) for batch in first] == [4, 4, 1]
        assert all(torch.equal(x, other[name]) for one, other in zip(first, second) for name, x in one.items())
        seen.append(first)
        return train(self, loss_fn, batches, valid_batches)
    monkeypatch.setattr(run.Run, "train", look)
    assert call(*words, "--out", tmp_path / "a") == call(*words, "--out", tmp_path / "b") == 0
    assert len(seen) == 2
    losses = [read(tmp_path / name / "run.json")["result"]["valid_loss"] for name in "ab"]
    assert losses[0] == losses[1] != pytest.approx(0.5, abs=1e-6)


def encode_rows(path, encode, forms, **settings):
    tally = Tally()
    return [encode(row, tally, make_tokenizer(), **settings) for row in read_rows([path], forms)], tally


def test_single_answers_and_pairs(tmp_path):
    """A row with a label gives one answer, a pair two; what is empty, alike, too long or of no use is counted."""
    two = {"prompt": "Where?", "chosen": "Here.", "rejected": "Fox."}
    rows = [JUDGED[0], {**two, "margin": 1}, {"prompt": "Where?", "completion": " ", "label": True},
            {**two, "rejected": "Here. "}, {**two, "chosen": ""}]
    found, tally = encode_rows(
        write(tmp_path / "d.jsonl", *rows), encoders.encode_judged, ("judged", "pair"), context=96)
    tokenizer = make_tokenizer()
    one, = found[0]
    prompt, answer = encode_prompt(tokenizer, JUDGED[0]["prompt"]), encode_answer(tokenizer, JUDGED[0]["completion"])
    assert one == {"answer_input_ids": prompt + answer, "wanted": True,
                   "answer_response_mask": [False] * len(prompt) + [True] * len(answer)}
    where = encode_prompt(tokenizer, "Where?")
    assert [(one["answer_input_ids"], one["wanted"]) for one in found[1]] == [
        (where + encode_answer(tokenizer, "Here."), True), (where + encode_answer(tokenizer, "Fox."), False)]
    assert found[2:] == [None] * 3
    assert tally.dropped == {"empty answer": 2, "chosen and rejected are the same": 1}
    assert tally.noted == {"pairs, each read as a wanted and an unwanted answer": 1,
                           "with a margin, which this loss does not use": 1}
    # Too long: the prompt loses its oldest text, not its control tokens; the answer is whole.
    short = len(prompt) + len(answer) - 2
    found, tally = encode_rows(tmp_path / "d.jsonl", encoders.encode_judged, ("judged", "pair"), context=short)
    assert found[0][0]["answer_input_ids"] == prompt[:1] + prompt[3:] + answer
    assert len(found[0][0]["answer_input_ids"]) == short and tally.noted[f"cut to {short} tokens"] == 1


def test_a_label_is_true_or_false(tmp_path, capsys):
    """1, "yes" and null are no labels; the error names the line."""
    model, _ = prepare(tmp_path, PAIRS)
    for label in (1, "yes"):
        data = write(tmp_path / "d.jsonl", JUDGED[0], {**JUDGED[1], "label": label})
        assert call("dpo", "--model", model, "--data", data, "--loss", "kto", "--out", tmp_path / "out") == 2
        assert f"{data}:2: 'label' must be true (a wanted answer) or false" in capsys.readouterr().err


def test_options_that_do_not_go_together(tmp_path, capsys):
    """Refused before the model is opened, each in one sentence."""
    words = ["dpo", "--model", tmp_path / "none", "--data", tmp_path / "none.jsonl", "--out", tmp_path / "out"]
    for more, said in ((["--loss", "ipo", "--label-smoothing", 0.1], "has no meaning with --loss ipo"),
                       (["--loss", "robust"], "--loss robust needs --label-smoothing"),
                       (["--loss", "kto", "--batch-size", 1], "give --batch-size 2 or more")):
        assert call(*words, *more) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_margins_travel_to_the_loss(name, tmp_path, monkeypatch):
    """A row's "margin" reaches the loss, with 0 for a row that has none."""
    rows = [{**row, "margin": 0.5 * place} if place % 2 else row for place, row in enumerate(PAIRS)]
    model, data = prepare(tmp_path, rows)
    module, function = (dpo, "dpo_loss") if name == "dpo" else (reward, "bradley_terry_loss")
    seen, original = [], getattr(module, function)

    def watched(*args, **kwargs):
        margin = kwargs["margin"] if name == "dpo" else args[2]
        seen.extend(margin.tolist())
        return original(*args, **kwargs)
    if name == "dpo":
        make = dpo.make_dpo_loss
        monkeypatch.setattr(dpo, "make_dpo_loss", lambda *args: make(*args[:3], watched))
    else:
        monkeypatch.setattr(reward, function, watched)
    words = [name, "--model", model, "--data", data, "--valid", data, "--out", tmp_path / "out"]
    assert call(*words, "--steps", 1, "--batch-size", 8) == 2, "a file in both counts as --valid only"
    valid = write(tmp_path / "valid.jsonl", *rows)
    words[words.index("--valid") + 1] = valid
    assert call(*words, "--steps", 1, "--batch-size", 8) == 0
    expected = [row.get("margin", 0.0) for row in rows]
    assert sorted(seen[:len(rows)]) == sorted(expected)


def test_margins_that_no_loss_uses_are_counted(tmp_path, capsys):
    """--loss ipo has no use for a margin and says so; a margin that is no number is refused by its line."""
    model, data = prepare(tmp_path, [{**row, "margin": 1} for row in PAIRS])
    words = ["dpo", "--model", model, "--data", data, "--out", tmp_path / "out", "--steps", 1]
    assert call(*words, "--loss", "ipo") == 0
    assert f"{len(PAIRS)} with a margin, which this loss does not use" in capsys.readouterr().out
    for bad in ('"1"', "true", "[1]", "1" + 400 * "0", "1e999"):
        row = json.dumps({**PAIRS[1], "margin": 0}).replace('"margin": 0', f'"margin": {bad}')
        write(tmp_path / "data.jsonl", PAIRS[0], row)
        assert call(*words, "--overwrite") == 2
        said = capsys.readouterr().err
        assert "data.jsonl:2: " in said and "finite number" in said
