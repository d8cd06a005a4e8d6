"""The verbs mlm and classify, piece by piece and from end to end, on an encoder of a few thousand parameters."""

import json
import signal
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from test_cli import NAMES, TEXTS, assert_same_bits, call, read
from test_jobs import as_rows, make_tokenizer, save_tiny, write
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from minift.cli import classes, classifier, encoders, examples, measures, predict
from minift.cli import rows as row_files
from minift.core.files import read_tensors
from minift.core.heads import MaskedLanguageModel, SequenceClassifier
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError
from minift.formats.checkpoint import load_model, save_model
from minift.methods import mlm as methods_mlm
from minift.methods.mlm import Masked
from minift.text.jsonl import read_jsonl
from minift.world import recipes

CONTEXT = 48
ENDS = {"glad": "has a red kite. happy end.", "sorry": "has a blue boat. Where is the fox?"}
ROWS = [{"text": f"{name} {end}", "label": label} for name in NAMES for label, end in ENDS.items()]


def make_config():
    """A BERT of one layer, 16 wide."""
    return TransformerConfig(vocab_size=300, context_length=CONTEXT, n_layer=1, n_head=2, d_model=16, d_ff=32,
                             causal=False, norm_first=False, norm="layernorm", positions="learned", mlp="gelu",
                             bias=True)


def make_classifier(names=("glad", "sorry"), pooling="mean"):
    torch.manual_seed(0)
    model = SequenceClassifier(Transformer(make_config()), len(names), pooling, list(names))
    torch.nn.init.normal_(model.head.weight)        # so that the probabilities are of all sizes
    return model.eval()


def save_encoder(path):
    torch.manual_seed(0)
    save_model(MaskedLanguageModel(make_config()).eval(), make_tokenizer(), path)
    return path


def save_classifier(path, *names):
    save_model(make_classifier(*([names] if names else [])), make_tokenizer(), path)
    return path


def as_read(tokenizer, text, pair=None):
    """[CLS] text [SEP], or [CLS] text [SEP] pair [SEP], as ids (1, T), whole."""
    cls, sep = tokenizer.special["<cls>"], tokenizer.special["<sep>"]
    ids = [cls, *tokenizer.encode(text), sep] + ([*tokenizer.encode(pair), sep] if pair is not None else [])
    return torch.tensor([ids])


def train_command(verb, tmp_path, *more, out="out", rows=None):
    """A short training on an encoder; returns the words of the command."""
    rows = rows or (TEXTS if verb == "mlm" else ROWS)
    return [verb, "--model", save_encoder(tmp_path / "encoder"), "--data", write(tmp_path / f"{verb}.jsonl", *rows),
            "--out", tmp_path / out, *more]


def no_measure(run, data, labels):
    """Instead of the baselines, in a test that is not about them and should not wait for them."""
    return {"accuracy": 0.5}


def loaded(train, valid=()):
    """Data of examples that have nothing but a label."""
    train, valid = ([{"label": name, "where": f"{file}.jsonl:{i}"} for i, name in enumerate(names, 1)]
                    for file, names in (("train", train), ("valid", valid)))
    return examples.Data(train, valid, "a tenth", {}, {})


# ---- data.py, examples.py, encoders.py: rows with a label ----


def test_a_label_is_read_where_labels_are_of_use(read_row=row_files.read_row):
    """{"text", "label"} is a labelled row for classify, and a text for those who read texts; null is no label."""
    line = b'{"text": "a", "label": "x"}'
    assert read_row("f:1", line, False, ("label",)).form == "label"
    assert read_row("f:1", line, False, row_files.FORMS).form == "label"
    assert read_row("f:1", line, False, ("text",)).form == "text"
    with pytest.raises(MiniftError, match="f:1: .*{text, label}, none of them null"):
        read_row("f:1", b'{"text": "a", "label": null}', False, ("label",))


@pytest.mark.parametrize("value, kept", [(3, "3"), (-1, "-1"), ("3", "3"), ("the end", "the end"), (0, "0"),
                                         (1.0, None), (0.5, None), (True, None), (["a"], None), ("", None),
                                         (" ", None)])
def test_a_label_is_a_name(value, kept, read_row=row_files.read_row, encode=encoders.encode_labelled_row):
    """Strings and whole numbers name a class; a float, a truth value, a list and an empty string do not."""
    line = json.dumps({"text": "fox", "label": value}).encode()
    if kept is None:
        with pytest.raises(MiniftError, match="f:1: 'label' .*name"):
            encode(read_row("f:1", line, False, ("label",)), examples.Tally(), make_tokenizer(), CONTEXT)
    else:
        row = read_row("f:1", line, False, ("label",))
        assert encode(row, examples.Tally(), make_tokenizer(), CONTEXT)["label"] == kept


def test_labelled_rows_are_cut_at_the_end(encode=encoders.encode_labelled_row):
    """The beginning stays, the special tokens too; cut and empty texts are counted; a second text stands behind."""
    tokenizer, tally = make_tokenizer(), examples.Tally()
    long, pair, empty, odd = as_rows({"text": "fox kite " * 40, "label": 1}, {"text": "fox", "text_pair": "a mill",
                                     "label": 1}, {"text": " ", "label": 1}, {"text": "x", "text_pair": 3, "label": 1})
    ids = encode(long, tally, tokenizer, CONTEXT)["input_ids"]
    whole = as_read(tokenizer, long.values["text"])[0].tolist()
    assert ids == whole[:CONTEXT - 1] + whole[-1:] and list(tally.noted.values()) == [1]
    assert encode(pair, tally, tokenizer, CONTEXT)["input_ids"] == as_read(tokenizer, "fox", "a mill")[0].tolist()
    assert encode(empty, tally, tokenizer, CONTEXT) is None and tally.dropped == {"empty text": 1}
    with pytest.raises(MiniftError, match="f:3: 'text_pair' must be a string"):
        encode(odd, tally, tokenizer, CONTEXT)


def test_pieces_hold_the_whole_document(encode_pieces=encoders.encode_pieces):
    """Without [CLS] and [SEP] the pieces joined are the document's tokens; each is at most the context long."""
    tokenizer, tally = make_tokenizer(), examples.Tally()
    long, short, empty = as_rows({"text": "The fox is at the mill. " * 30}, {"text": "fox"}, {"text": "\n"})
    for context in (3, 20, CONTEXT):
        pieces = [piece["input_ids"] for piece in encode_pieces(long, tally, tokenizer, context)]
        ends = {(piece[0], piece[-1]) for piece in pieces}
        assert ends == {(tokenizer.special["<cls>"], tokenizer.special["<sep>"])} and len(pieces) > 1
        assert [i for piece in pieces for i in piece[1:-1]] == tokenizer.encode(long.values["text"])
        assert [len(piece) for piece in pieces[:-1]] == [context] * (len(pieces) - 1) and len(pieces[-1]) <= context
    assert sum(tally.noted.values()) == 3 and len(encode_pieces(short, tally, tokenizer, CONTEXT)) == 1
    assert encode_pieces(empty, tally, tokenizer, CONTEXT) is None and tally.dropped == {"empty text": 1}
    with pytest.raises(MiniftError, match="at least 3"):
        encode_pieces(short, tally, tokenizer, 2)


def test_a_second_text_makes_another_row(without_duplicates=examples.without_duplicates):
    """The same text with another text_pair is another row; with another label it is a contradiction, and counted."""
    rows = as_rows({"text": "a", "text_pair": "x", "label": 1}, {"text": "a", "text_pair": "y", "label": 1},
                   {"text": "a", "text_pair": "x", "label": 2}, {"text": "a", "text_pair": "x", "label": 1, "id": 3})
    tally = examples.Tally()
    assert len(without_duplicates(rows, tally, drop=False)) == 4
    assert tally.noted == {"an earlier text with another label": 1, "the same as an earlier row": 1}
    assert [row.where for row in without_duplicates(rows, examples.Tally(), drop=True)] == ["f:0", "f:1"]


def test_a_text_is_on_one_side_of_the_split(hold_out=examples.hold_out):
    """All rows about one text, whatever their labels and second texts, are trained on together or held out together."""
    rows = as_rows(*({"text": f"t{i % 30}", "text_pair": f"p{i}", "label": i % 2} for i in range(90)))
    train, valid = hold_out([(row, None) for row in rows], 0)
    texts = [{row.values["text"] for row, _ in part} for part in (train, valid)]
    assert len(valid) == 9 and len(texts[1]) == 3 and not texts[0] & texts[1]


# ---- classes.py ----


def test_classes_are_numbered_in_order(class_names=classes.class_names):
    """Names are sorted, whole numbers by value, and each example gets the place of its name."""
    for names, order in ((["b", "a", "b", "a"], ["a", "b"]), (["10", "9", "-1", "9", "10", "-1"], ["-1", "9", "10"]),
                         (["10", "9", "x", "9", "10", "x"], ["10", "9", "x"])):
        found = loaded(names, names[:1])
        assert class_names(found, held_out=False) == order
        assert [order[example["label"]] for example in found.train] == names
        assert [order[example["label"]] for example in found.valid] == names[:1]


def test_a_rare_label_is_trained_on(recwarn, capsys, class_names=classes.class_names):
    """A label of one row, which the split held out, goes back to training, is warned about by name; the note counts."""
    found = loaded(["a", "b"] * 9, ["a", "rare", "b"])
    assert class_names(found, held_out=True) == ["a", "b", "rare"]
    assert [example["label"] for example in found.train] == [0, 1] * 9 + [2]
    assert [example["label"] for example in found.valid] == [0, 1] and "2 rows" in found.valid_from
    assert ["'rare'" in str(warning.message) for warning in recwarn] == [True]
    out = capsys.readouterr().out
    assert "1 went back to training" in out and "no validation row has the label 'rare'" in out


def test_a_new_label_in_validation_is_named(class_names=classes.class_names):
    """A label of --valid that no training row has is an error with file, line, label and what there is."""
    with pytest.raises(MiniftError, match=r"valid\.jsonl:2: the label 'x' is new; the training rows have 'a', 'b'"):
        class_names(loaded(["a", "b"] * 2, ["a", "x"]), held_out=False)


def test_one_class_is_no_choice(class_names=classes.class_names):
    """A single label in all training rows is an error, also when it comes back from the validation alone."""
    for valid in ((), ("a",)):
        with pytest.raises(MiniftError, match="all 3 training rows have the label 'a'.*at least 2"):
            class_names(loaded(["a"] * 3, valid), held_out=True)


def test_a_confusion_matrix_is_a_small_table(confusion_table=classes.confusion_table):
    """Each count stands under its predicted label in the row of the right one; many classes are not printed."""
    lines = confusion_table([[4, 9], [123456, 7]], ["happy", "a label of many words"])
    assert [line.split() for line in lines[2:]] == [["happy", "4", "9"], ["a", "label", "of", "many…", "123456", "7"]]
    assert len({len(line) for line in lines[1:]}) == 1 and lines[1].index("happy") + 5 == lines[2].index(" 4") + 2
    assert len(confusion_table([[0] * 13] * 13, [str(i) for i in range(13)])) == 1


# ---- mlm ----


def test_mlm_is_measured_on_one_mask(tmp_path, capsys):
    """Loss and accuracy before and after are those of the two folders, on the very same hidden tokens."""
    texts = [f"{name} is happy{', and so is the fox' * (i % 2)}." for i, name in enumerate(NAMES[:6])]
    valid = write(tmp_path / "v.jsonl", *({"text": text} for text in texts))
    more = ("--valid", valid, "--steps", 12, "--eval-every", 3, "--lr", 0.02, "--hidden", 0.3, "--batch-size", 4)
    assert call(*train_command("mlm", tmp_path, *more)) == 0
    record, rows = read(tmp_path / "out" / "run.json"), read_jsonl(tmp_path / "out" / "metrics.jsonl")
    losses = {row["step"]: row["valid_loss"] for row in rows if "valid_loss" in row}
    assert record["best_step"] == min(losses, key=losses.get) and record["status"] == "finished" and len(losses) == 4
    tokenizer = make_tokenizer()
    ids = [as_read(tokenizer, text)[0] for text in texts]
    batches = [{"input_ids": pad_sequence(part, True, tokenizer.pad_id),
                "attention_mask": pad_sequence([torch.ones_like(x) for x in part], True).bool()}
               for part in (ids[:4], ids[4:])]
    hidden = list(Masked(batches, mask_id=tokenizer.special["<mask>"], special_ids=tokenizer.special.values(),
                         vocab_size=tokenizer.vocab_size, probability=0.3, fresh=False))
    for folder, found in (("encoder", record["before"]), ("out", record["result"])):
        model, _ = load_model(tmp_path / folder)
        pairs = [(model(b["input_ids"], b["attention_mask"])[b["labels"] >= 0], b["labels"][b["labels"] >= 0])
                 for b in hidden]
        logits, right = (torch.cat(part) for part in zip(*pairs))
        assert F.cross_entropy(logits, right).item() == pytest.approx(found["valid_loss"], abs=1e-5)
        assert (logits.argmax(-1) == right).float().mean().item() == pytest.approx(found["valid_accuracy"], abs=1e-6)
    assert "valid_accuracy: " in capsys.readouterr().out and record["result"] != record["before"]


def test_mlm_hides_what_it_is_asked_to(tmp_path, monkeypatch):
    """--hidden is the share of the tokens that are learned, --whole-words hides words; [CLS] and [SEP] stay."""
    made = []
    monkeypatch.setattr(methods_mlm, "Masked",
                        lambda *args, **settings: made.append(settings) or Masked(*args, **settings))
    assert call(*train_command("mlm", tmp_path, "--hidden", 0.9, "--steps", 2, "--batch-size", 99)) == 0
    n = sum(len(make_tokenizer().encode(row["text"])) for row in TEXTS) * 0.9       # a tenth is held out
    hidden = [row["n_tokens"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")]
    assert all(abs(count / (0.9 * n) - 1) < 0.08 for count in hidden) and hidden[0] != hidden[1], "a new mask"
    assert [settings["letters"] for settings in made] == [None, None]
    assert call(*train_command("mlm", tmp_path, "--whole-words", "--steps", 1, "--overwrite")) == 0
    assert all(len(settings["letters"]) == 2 for settings in made[2:]) and len(made) == 4


def test_mlm_learns_from_long_documents(tmp_path, capsys):
    """A plain text beyond the context is trained on from its beginning to its end; too little to hide is said."""
    (tmp_path / "long.txt").write_text("The fox is at the mill with Ada. " * 60, encoding="utf-8")
    (tmp_path / "short.txt").write_text("x", encoding="utf-8")
    command = train_command("mlm", tmp_path, "--steps", 1, "--batch-size", 999, "--hidden", 0.5)
    command[command.index("--data") + 1] = tmp_path / "long.txt"
    assert call(*command, "--valid", tmp_path / "short.txt", "--seed", 1) == 0
    n = len(make_tokenizer().encode("The fox is at the mill with Ada. " * 60))
    assert n > 10 * CONTEXT and read_jsonl(tmp_path / "out" / "metrics.jsonl")[0]["n_tokens"] > 0.4 * n
    out = capsys.readouterr().out
    assert "1 longer than 48 tokens, and cut into pieces" in out
    assert "too short to hide" in out and read(tmp_path / "out" / "run.json")["validation"].startswith("nothing")


def test_the_recipe_is_repeated_on_demand(tmp_path, monkeypatch, capsys):
    """mlm --recipe encoder hands its folder to the recipe of data/encoder, and refuses a folder in use."""
    asked = []
    monkeypatch.setattr(recipes, "pretrain_encoder", lambda out: asked.append(out) or {"n_parameters": 7})
    assert call("mlm", "--recipe", "encoder", "--out", tmp_path / "new") == 0
    assert asked == [str(tmp_path / "new")] and "7 parameters" in capsys.readouterr().out
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert call("mlm", "--recipe", "encoder", "--out", tmp_path) == 2 and len(asked) == 1
    assert call("mlm", "--recipe", "encoder", "--out", tmp_path, "--overwrite") == 0 and len(asked) == 2


@pytest.mark.parametrize("verb, more", [("mlm", ()), ("classify", ("--full",)), ("classify", ("--probe-then-full",))])
def test_a_stopped_run_goes_on_bit_for_bit(verb, more, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the middle ends with 130; --resume then ends with the very numbers of a run never stopped."""
    monkeypatch.setattr(classifier, "measure", no_measure)
    command = train_command(verb, tmp_path, "--steps", 8, "--batch-size", 8, "--eval-every", 3, *more)
    assert call(*command[:-1], command[-1]) == 0
    command[command.index(tmp_path / "out")] = tmp_path / "stopped"
    name = {"mlm": "make_mlm_loss", "classify": "make_classification_loss"}[verb]
    module = {"mlm": methods_mlm, "classify": classifier}[verb]
    make, calls = getattr(module, name), []

    def stopping(model):
        def loss_fn(batch):
            calls.append(1)
            if len(calls) == 6:
                signal.raise_signal(signal.SIGINT)
            return make(model)(batch)
        return loss_fn

    monkeypatch.setattr(module, name, stopping)
    assert call(*command) == 130 and "--resume" in capsys.readouterr().err
    assert 1 < len(read_jsonl(tmp_path / "stopped" / "metrics.jsonl")) < 8
    monkeypatch.setattr(module, name, make)
    assert call(*command, "--resume") == 0
    for file in ("out", "stopped"):
        assert read(tmp_path / file / "run.json")["status"] == "finished"
    assert_same_bits(tmp_path / "out" / "model.safetensors", tmp_path / "stopped" / "model.safetensors")
    before, after = (read_tensors(tmp_path / file / "model.safetensors")[0] for file in ("encoder", "out"))
    assert not any(torch.equal(after[name], before[name]) for name in after if name.startswith("body.")), "frozen"
    metrics = [read_jsonl(tmp_path / file / "metrics.jsonl") for file in ("out", "stopped")]
    assert metrics[0] == metrics[1] and read(tmp_path / "out" / "run.json")["result"] == read(
        tmp_path / "stopped" / "run.json")["result"]


# ---- classify ----


def probabilities_of(folder, rows):
    """(N, L) by hand: every row alone, without padding, through the saved classifier."""
    model, tokenizer = load_model(folder)
    return torch.cat([model(as_read(tokenizer, row["text"], row.get("text_pair"))).softmax(-1) for row in rows]), model


def test_a_probe_leaves_the_encoder_alone(tmp_path, capsys):
    """With --freeze, the default, the body is bit-equal; the head beats the majority; run.json has what it measured."""
    valid = write(tmp_path / "v.jsonl", *ROWS[:10], {"text": "happy end. happy end.", "label": "sorry"})
    assert call(*train_command("classify", tmp_path, "--valid", valid, "--pooling", "cls", rows=ROWS[10:])) == 0
    before, after = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("encoder", "out"))
    body = [name for name in after if name.startswith("body.")]
    assert len(body) > 10 and all(torch.equal(after[name], before[name]) for name in body)
    record, out = read(tmp_path / "out" / "run.json"), capsys.readouterr().out
    found, rows = record["result"]["validation"], read_jsonl(valid)
    probabilities, model = probabilities_of(tmp_path / "out", rows)
    assert model.labels == ["glad", "sorry"] and model.pooling == "cls" and record["parameters"]["trained"] == 34
    counts = Counter((row["label"], model.labels[i]) for row, i in zip(rows, probabilities.argmax(-1).tolist()))
    table = [[counts[right, guess] for guess in model.labels] for right in model.labels]
    assert found["confusion_matrix"] == {"labels": model.labels, "counts": table}
    accuracy = (table[0][0] + table[1][1]) / 11
    assert found["accuracy"] == pytest.approx(accuracy) and accuracy > found["baselines"]["majority class"]
    assert found["baselines"]["majority class"] in (5 / 11, 6 / 11)
    low, high = (float(x) for x in found["accuracy_95%"].split(" to "))
    assert low < accuracy <= high and found.keys() >= {"macro_f1", "expected_calibration_error"}
    assert found["baselines"].keys() == {"majority class", "bag of words", "random encoder", "shuffled labels"}
    assert all(name in out for name in (*found["baselines"], "macro F1", "confusion matrix", f"{accuracy:.3f}"))


def test_full_keeps_the_best(tmp_path):
    """--full trains the body too, and keeps the weights of the best validation loss, whose numbers run.json tells."""
    rows = [*ROWS[:4], {"text": "Ada has a red kite. happy end.", "label": "sorry"}]
    valid = write(tmp_path / "v.jsonl", *rows)
    more = ("--full", "--valid", valid, "--steps", 30, "--eval-every", 1, "--lr", 0.03)
    assert call(*train_command("classify", tmp_path, *more)) == 0
    record = read(tmp_path / "out" / "run.json")
    losses = {row["step"]: row["valid_loss"] for row in read_jsonl(tmp_path / "out" / "metrics.jsonl")}
    assert record["best_step"] == min(losses, key=losses.get) < 30, "made so that the last step is not the best"
    probabilities, model = probabilities_of(tmp_path / "out", rows)
    right = torch.tensor([model.labels.index(row["label"]) for row in rows])
    loss = F.nll_loss(probabilities.log(), right).item()
    assert loss == pytest.approx(record["result"]["valid_loss"], abs=1e-5)
    hits = (probabilities.argmax(-1) == right).float().mean().item()
    assert hits == pytest.approx(record["result"]["validation"]["accuracy"])
    before, after = (read_tensors(tmp_path / name / "model.safetensors")[0] for name in ("encoder", "out"))
    assert not torch.equal(after["body.embed.weight"], before["body.embed.weight"])


def test_probe_then_full_begins_with_the_probe(tmp_path, monkeypatch):
    """Before its first step on all parameters the model is the probe; --full begins with a new head."""
    monkeypatch.setattr(classifier, "measure", no_measure)
    valid = write(tmp_path / "v.jsonl", *ROWS[:12])
    found = {}
    for flag in ("--freeze", "--probe-then-full", "--full"):
        more = ("--valid", valid, "--steps", 1, "--lr", 1e-9) if flag != "--freeze" else ("--valid", valid)
        assert call(*train_command("classify", tmp_path, flag, *more, out=flag, rows=ROWS[12:])) == 0
        found[flag] = read(tmp_path / flag / "run.json")
    probabilities, _ = probabilities_of(tmp_path / "--freeze", ROWS[:12])
    right = torch.tensor([0, 1] * 6)
    loss = F.nll_loss(probabilities.log(), right).item()
    assert found["--probe-then-full"]["before"]["valid_loss"] == pytest.approx(loss, abs=1e-5)
    assert abs(found["--full"]["before"]["valid_loss"] - loss) > 0.1
    assert found["--probe-then-full"]["parameters"]["trained"] == found["--full"]["parameters"]["all"]


def test_labels_of_all_kinds_go_through(tmp_path, capsys):
    """Numbers as labels, second texts, a label seen once, empty and too long texts: trained on, counted, said."""
    rows = [{"text": f"{row['text']} {name}", "text_pair": "the mill", "label": 10 if row["label"] == "glad" else 9}
            for row, name in zip(ROWS, NAMES * 2)]
    rows += [{"text": "", "label": 9}, {"text": "fox kite " * 40, "label": 9}, {"text": "once", "label": -3}]
    assert call(*train_command("classify", tmp_path, rows=rows)) == 0
    assert load_model(tmp_path / "out")[0].labels == ["-3", "9", "10"]
    captured = capsys.readouterr()
    assert "1 dropped: empty text; 1 cut to 48 tokens" in captured.out
    assert "warning: labels with a single training row, from which little can be learned: '-3'" in captured.err
    assert "no validation row has the label '-3'" in captured.out


def test_few_rows_are_not_measured(tmp_path, capsys):
    """Fewer than 20 different texts are all trained on; the output says so, and nothing is claimed."""
    assert call(*train_command("classify", tmp_path, rows=ROWS[:8])) == 0
    record = read(tmp_path / "out" / "run.json")
    assert record["result"] == {} and record["examples"] == {"train": 8, "valid": 0}
    assert "validation on nothing" in capsys.readouterr().out and load_model(tmp_path / "out")[0].labels


def test_baselines_learn_from_the_training_rows(tmp_path, monkeypatch):
    """Each baseline gets the training rows to learn from, the validation rows to be judged on, and the seed."""
    given = {}
    for name, value in (("majority", 0.1), ("bag_of_words", 0.2), ("random_encoder", 0.3), ("shuffled_labels", 0.4)):
        monkeypatch.setattr(
            classifier, name, lambda *args, name=name, value=value, **more: given.update({name: (args, more)}) or value)
    valid = write(tmp_path / "v.jsonl", *ROWS[:3])
    command = train_command("classify", tmp_path, "--valid", valid, "--seed", 5, "--steps", 2, rows=ROWS[3:])
    assert call(*command) == 0
    assert list(read(tmp_path / "out" / "run.json")["result"]["validation"]["baselines"].values()) == [.1, .2, .3, .4]
    known, right = ([int(row["label"] == "sorry") for row in part] for part in (ROWS[3:], ROWS[:3]))
    assert given["majority"][0] == (known, right)
    assert given["bag_of_words"] == ((ROWS[3:], known, ROWS[:3], right, 2), {"seed": 5})
    for name in ("random_encoder", "shuffled_labels"):
        _, train, tested, seed = given[name][0]
        assert [label for batch in train for label in batch["label"].tolist()] == known and seed == 5
        assert [label for batch in tested for label in batch["label"].tolist()] == right


# ---- classify --predict, evaluate, check-data ----


def test_predictions_are_written_over_on_demand(tmp_path):
    """--out of classify --predict is a new file, unless --overwrite is given."""
    rows = write(tmp_path / "rows.jsonl", {"text": "fox"})
    command = ["classify", "--model", save_classifier(tmp_path / "m"), "--predict", rows, "--out", tmp_path / "o.jsonl"]
    assert [call(*command), call(*command), call(*command, "--overwrite")] == [0, 2, 0]


def test_predictions_are_those_of_each_row_alone(tmp_path, capsys):
    """Rows keep their order and keys and get label and probabilities, whatever shares their batch; an old label is kept
    and compared."""
    folder = save_classifier(tmp_path / "m")
    rows = [{"text": "fox", "id": 7}, {"text": " ", "label": "sorry"},
            {"text": "Ada has a red kite. happy end.", "label": "glad"},
            {"text": "Where is the fox?", "text_pair": "at the mill", "label": 4}]
    path = write(tmp_path / "r.jsonl", *rows)
    assert call("classify", "--model", folder, "--predict", path, "--out", tmp_path / "p.jsonl") == 0
    captured, written = capsys.readouterr(), read_jsonl(tmp_path / "p.jsonl")
    assert written.pop(1) == {"text": " ", "given_label": "sorry", "label": None, "probabilities": None}
    del rows[1]
    expected, model = probabilities_of(folder, rows)
    for row, new, p in zip(rows, written, expected, strict=True):
        assert new == {**row, "label": model.labels[int(p.argmax())], "probabilities": new["probabilities"],
                       **({"given_label": row["label"]} if "label" in row else {})}
        assert list(new["probabilities"]) == model.labels
        assert list(new["probabilities"].values()) == pytest.approx(p.tolist(), abs=2e-6)
        assert all(value == round(value, 6) for value in new["probabilities"].values())
    hits = (written[1]["label"] == "glad") / 2
    assert f"on the 2 rows that came with a label: {hits:.4g} " in captured.out and "not know '4'" in captured.out
    assert "4 rows, 3 used; 1 dropped: empty text" in captured.out
    assert call("classify", "--model", folder, "--predict", path, "--out", tmp_path / "p.jsonl") == 2
    capsys.readouterr()
    assert call("classify", "--model", folder, "--predict", path) == 0
    captured = capsys.readouterr()
    assert [json.loads(line) for line in captured.out.splitlines()] == read_jsonl(tmp_path / "p.jsonl")
    assert "accuracy" in captured.err


def test_a_label_is_the_likeliest(labelled=predict.labelled):
    """The label is the one of highest probability; the probabilities are rounded to six digits."""
    assert labelled({"text": "x", "n": 1}, ["a", "b", "c"], [0.2, 0.50000049, 0.29999951]) == {
        "text": "x", "n": 1, "label": "b", "probabilities": {"a": 0.2, "b": 0.5, "c": 0.3}}


def test_a_classifier_is_evaluated_on_labels(tmp_path, capsys):
    """Accuracy, macro F1 and calibration error by hand, from each row's own probabilities; a new label is named."""
    folder = save_classifier(tmp_path / "m")
    path = write(tmp_path / "r.jsonl", *ROWS[:9])
    words = ["evaluate", "--model", folder, "--batch-size", 4, "--data"]
    assert call(*words, path, "--out", tmp_path / "e.json") == 0
    found, (probabilities, model) = read(tmp_path / "e.json"), probabilities_of(folder, ROWS[:9])
    confidence, guesses = (x.tolist() for x in probabilities.max(-1))
    right = [model.labels.index(row["label"]) for row in ROWS[:9]]
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in zip(guesses, right)) / 9) and found["rows"] == 9
    f1 = [2 * sum(a == b == c for a, b in zip(guesses, right)) / (guesses.count(c) + right.count(c)) for c in (0, 1)]
    assert found["macro_f1"] == pytest.approx(sum(f1) / 2)
    bins = {}
    for a, b, p in zip(guesses, right, confidence):
        bins.setdefault(int(p * 10), []).append((a == b) - p)
    error = sum(abs(sum(gaps)) for gaps in bins.values()) / 9
    assert found["expected_calibration_error"] == pytest.approx(error, abs=1e-5)
    capsys.readouterr()
    assert call(*words, write(tmp_path / "n.jsonl", *ROWS[:2], {"text": "x", "label": "new"})) == 2
    assert "n.jsonl:3: the label 'new' is new; the classifier knows 'glad', 'sorry'" in capsys.readouterr().err


def test_judging_is_by_the_highest_probability(judge=measures.judge):
    """Half of four right at confidences 1 and 0.75: accuracy 0.5, F1 (2/3 + 0)/2, calibration error 3/8."""
    probabilities = torch.tensor([[1, 0], [1, 0], [0.75, 0.25], [0.75, 0.25]])
    found = judge(probabilities, [0, 1, 0, 1])
    assert found["accuracy"] == 0.5 and found["accuracy_95%"] == "0 to 1" and found["macro_f1"] == pytest.approx(1 / 3)
    assert found["expected_calibration_error"] == pytest.approx(0.5 * 0.5 + 0.5 * 0.25)


def test_check_data_counts_the_labels(tmp_path, capsys):
    """For an encoder: rows of each label, what is cut, and pieces of texts; a language model reads the same as text."""
    rows = [*ROWS[:5], {"text": "fox kite " * 40, "label": "glad"}, {"text": "", "label": "glad"}, TEXTS[0]]
    path = write(tmp_path / "r.jsonl", *rows)
    folder = save_encoder(tmp_path / "e")
    assert call("check-data", "--model", folder, "--data", path) == 0
    out = capsys.readouterr().out
    assert "rows of each label: 'glad' 4, 'sorry' 2" in out and "1 dropped: empty text; 1 cut to 48 tokens" in out
    assert "| glad: <cls>Ada has a red kite. happy end.<sep>" in out and "for mlm" in out and "tokens/s" in out
    assert f"<cls>«{TEXTS[0]['text']}»<sep>" in out and "MiB" in out
    bad = write(tmp_path / "b.jsonl", ROWS[0], {"text": "x", "label": 0.5}, {"prompt": "x", "completion": "y"},
                {"text": "x", "label": None})
    assert call("check-data", "--model", folder, "--data", bad) == 2
    captured = capsys.readouterr()
    assert f"problem: {bad}:2: 'label'" in captured.out and f"problem: {bad}:3: expected" in captured.out
    assert "2 rows are bad" in captured.err and "{text}, for mlm" in captured.out
    assert call("check-data", "--model", save_tiny(tmp_path / "lm"), "--data", path) == 0
    assert "{text}, for pretrain, evaluate, ppo, grpo: 8 rows" in capsys.readouterr().out


def test_two_purposes_are_refused(check_choice=classifier.check_choice):
    """--data and --predict exclude each other, one must be there; options without an effect are refused by name."""
    def options(*argv, regime="freeze", **given):
        return SimpleNamespace(**{"data": None, "predict": None, "valid": None, "out": None, "regime": regime,
                                  "argv": argv, **given})

    check_choice(options(data=["x"], out="y"))
    check_choice(options("--epochs", "3", data=["x"], out="y", regime="full"))
    check_choice(options(predict=["x"]))
    for wrong, sign in ((options(), "needs one of"), (options(data=["x"], predict=["y"]), "needs one of"),
                        (options(data=["x"]), "needs --out"), (options(predict=["x"], valid=["y"]), "trains nothing"),
                        (options(predict=["x"], regime="full"), "trains nothing"),
                        (options("--epochs=3", data=["x"], out="y"), "--epochs: of no use with --freeze")):
        with pytest.raises(MiniftError, match=sign):
            check_choice(wrong)
