"""What the command line does with the user's files, piece by piece: reading, encoding, splitting, answering,
judging."""

import json
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from minift.__main__ import main
from minift.cli import (
    chat,
    data_report,
    encoders,
    examples,
    folders,
    generate,
    measures,
    models,
    options,
    rewards,
    rollouts,
    run,
    sampling,
    value_model,
)
from minift.cli import rows as row_files
from minift.core.generate import Generation
from minift.core.heads import LanguageModel, TokenScorer
from minift.core.logprobs import make_reference
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError
from minift.formats.adapter import save_adapter
from minift.formats.checkpoint import load_model, save_model
from minift.methods.lora import add_lora
from minift.text.chat import encode_prompt
from minift.text.tokenizer import Tokenizer

WORDS = "Ada has a red kite. Bob has a blue boat. Where is the fox? The fox is at the mill. Read this: happy end."
CONTEXT = 96
IDS = torch.tensor([[5, 7, 9, 11, 13, 7, 5]])


def make_tokenizer():
    return Tokenizer.train([WORDS], 300)


def make_model(kind="LanguageModel", seed=0, context_length=CONTEXT, **sizes):
    """A decoder small enough for a test of a whole command: 16 wide, 1 layer."""
    torch.manual_seed(seed)
    config = TransformerConfig(
        vocab_size=300, context_length=context_length, n_layer=1, n_head=2, d_model=16, d_ff=32, **sizes
    )
    return (LanguageModel(config) if kind == "LanguageModel" else TokenScorer(Transformer(config))).eval()


def save_tiny(path, kind="LanguageModel", seed=0, **sizes):
    """The folder of such a model."""
    save_model(make_model(kind, seed, **sizes), make_tokenizer(), path)
    return path


def write(path, *rows):
    """A JSONL file; a str or bytes row is written as it is."""
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def load_options(**changes):
    return SimpleNamespace(
        **{"data": [], "valid": None, "seed": 0, "skip_bad": False, "drop_duplicates": False, **changes}
    )


# ---- data.py: files and rows ----


def test_patterns_are_expanded_by_the_program(tmp_path, monkeypatch, find_files=row_files.find_files):
    """A pattern gives its files sorted, each once; a name with brackets is found as it stands."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.md", "a.md", "c.txt", "[x].md"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    assert [path.name for path in find_files(["*.md", "a.md", "c.*"])] == ["[x].md", "a.md", "b.md", "c.txt"]
    assert [path.name for path in find_files(["[x].md"])] == ["[x].md"]
    for bad, sign in ((["no*.md"], "no file matches no"), ([str(tmp_path)], "is a folder")):
        with pytest.raises(MiniftError, match=sign):
            find_files(bad)


def test_answers_may_be_messages(tmp_path, read_rows=row_files.read_rows):
    """TRL's conversational rows become the plain ones: an answer alone, or at the end of a whole conversation."""
    question, said, other = ({"role": role, "content": text} for role, text in (
        ("user", "Where?"), ("assistant", "Here."), ("assistant", "There.")))
    forms = ("completion", "pair")
    rows = read_rows([write(
        tmp_path / "a.jsonl", {"prompt": [question], "completion": [said]},
        {"prompt": [question], "chosen": [said], "rejected": [other]},
        {"chosen": [question, said], "rejected": [question, other]},
        {"prompt": "Where?", "chosen": [question, said], "rejected": [question, other]})], forms)
    pair = {"prompt": [question], "chosen": "Here.", "rejected": "There."}
    assert [row.values for row in rows] == [{"prompt": [question], "completion": "Here."}, pair, pair, pair]
    assert [row.form for row in rows] == ["completion", "pair", "pair", "pair"]
    for bad, sign in (({"prompt": "a", "completion": [question]}, "'completion'.*assistant"),
                      ({"prompt": "a", "chosen": [], "rejected": "b"}, "'chosen'.*assistant"),
                      ({"chosen": [question, said], "rejected": [said, question, said]}, ".*the same up to")):
        with pytest.raises(MiniftError, match=f"b.jsonl:1: {sign}"):
            read_rows([write(tmp_path / "b.jsonl", bad)], forms)
    row, = read_rows([write(tmp_path / "c.jsonl", {"prompt": "a", "completion": "b", "label": False})], forms)
    with pytest.raises(MiniftError, match="c.jsonl:1: 'label' is false"):
        encoders.messages_of(row)


def test_rows_know_their_line(tmp_path, read_rows=row_files.read_rows):
    """BOM, CRLF and blank lines are fine, U+2028 ends no line, and every row remembers PATH:LINE and its form."""
    raw = b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"prompt": "a\xe2\x80\xa8b", "completion": "c"}\n  \n{"prompt": "p"}'
    path = write(tmp_path / "x.jsonl", raw)
    rows = read_rows([path], tuple(row_files.FORMS))
    assert [(row.where, row.form) for row in rows] == [
        (f"{path}:1", "text"),
        (f"{path}:3", "completion"),
        (f"{path}:5", "prompt"),
    ]
    assert rows[1].values["prompt"] == "a\u2028b"


def test_the_fullest_form_wins(read_row=row_files.read_row):
    """A row is what its keys say: with chosen and rejected a pair, with a completion an answer, else a bare prompt."""
    row = {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"}
    for missing, form in (((), "pair"), (("chosen",), "completion"), (("chosen", "completion"), "prompt")):
        line = json.dumps({key: value for key, value in row.items() if key not in missing}).encode()
        assert read_row("x:1", line, False, tuple(row_files.FORMS)).form == form


@pytest.mark.parametrize(
    "line, sign",
    [
        (b"[1]", "object"),
        (b'{"promt": "x"}', "promt"),
        (b'{"prompt": null, "completion": "x"}', "null"),
        (b'{"prompt": 3}', "string"),
        (b'{"text": ["a"]}', "string"),
        (b'{"messages": "hi"}', "list"),
        (b"{", "JSON"),
        (b'{"text": "\xe9"}', "UTF-8"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "a", "score": NaN}', "NaN"),
    ],
)
def test_a_bad_row_is_named(line, sign, read_row=row_files.read_row):
    """Whatever is wrong with a line, the error begins with PATH:LINE and says what was expected."""
    with pytest.raises(MiniftError, match=sign) as error:
        read_row("file.jsonl:7", line, False, tuple(row_files.FORMS))
    assert str(error.value).startswith("file.jsonl:7: ")


def test_plain_text_is_one_row(tmp_path, read_rows=row_files.read_rows):
    """A .txt or .md file is one text; a byte that is not UTF-8 is found with its line; an empty file is an empty
    dataset."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert [row.values for row in read_rows([tmp_path / "a.txt"], ("text",))] == [{"text": "one\ntwo\n"}]
    (tmp_path / "b.md").write_bytes(b"one\ntwo \xe9\n")
    with pytest.raises(MiniftError, match=r"b\.md:2: not UTF-8"):
        read_rows([tmp_path / "b.md"], ("text",))
    for name in ("c.txt", "c.jsonl"):
        (tmp_path / name).write_bytes(b" \n\n")
        with pytest.raises(MiniftError, match=f"dataset is empty: .*{name}"):
            read_rows([tmp_path / name], ("text",))


# ---- examples.py: dropping, splitting, counting ----


def as_rows(*values):
    forms = tuple(row_files.FORMS)
    return [row_files.read_row(f"f:{i}", json.dumps(value).encode(), False, forms) for i, value in enumerate(values)]


def test_duplicates_are_counted(without_duplicates=examples.without_duplicates):
    """Rows that say the same as an earlier one, and pairs chosen the other way round, are counted, and dropped on
    demand."""
    rows = as_rows(
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": "a", "rejected": "b", "id": 1},
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "q", "chosen": "b", "rejected": "a"},
    )
    tally = examples.Tally()
    assert len(without_duplicates(rows, tally, drop=False)) == 4 and not tally.dropped
    assert sorted(tally.noted.values()) == [1, 1]
    tally = examples.Tally()
    assert [row.where for row in without_duplicates(rows, tally, drop=True)] == ["f:0", "f:3"] and sum(
        tally.dropped.values()
    ) == 2


def test_a_prompt_is_on_one_side_of_the_split(hold_out=examples.hold_out):
    """A tenth of the prompts is held out with all of their rows, by the seed alone; fewer than 20 prompts give no
    validation."""
    rows = as_rows(*({"prompt": f"p{i % 30}", "completion": f"c{i}"} for i in range(90)))
    pairs = [(row, i) for i, row in enumerate(rows)]
    train, valid = hold_out(pairs, 0)
    assert (
        len(valid) == 9
        and len(train) == 81
        and {row.source() for row, _ in valid} & {row.source() for row, _ in train} == set()
    )
    assert hold_out(pairs, 0) == (train, valid) != hold_out(pairs, 1)
    few = [pair for pair in pairs if pair[1] % 30 < 19]
    assert hold_out(few, 0) == (few, [])


def test_what_is_validated_is_not_trained_on(tmp_path, load=examples.load):
    """A file in --data and --valid is validation only; a row that is in both is noted; nothing left is an error
    with counts."""
    one, two = write(tmp_path / "1.jsonl", {"text": "a"}, {"text": "b"}), write(tmp_path / "2.jsonl", {"text": "b"})
    encode = lambda row, tally: row.values["text"]  # noqa: E731
    loaded = load(load_options(data=[str(tmp_path / "*.jsonl")], valid=[str(two)]), encode, ("text",))
    assert (loaded.train, loaded.valid) == (["a", "b"], ["b"]) and list(loaded.tallies["valid"].noted.values()) == [1]
    assert set(loaded.files) == {one.as_posix(), two.as_posix()}
    with pytest.raises(MiniftError, match="every file of --data is in --valid"):
        load(load_options(data=[str(two)], valid=[str(two)]), encode, ("text",))

    def refuse(row, tally):
        tally.dropped["too long"] += 1

    with pytest.raises(
        MiniftError, match=r"dataset is empty: nothing is left of .*2 rows, 0 used; 2 dropped: too long"
    ):
        load(load_options(data=[str(one)]), refuse, ("text",))


def test_the_seed_chooses_what_is_held_out(tmp_path, capsys, load=examples.load):
    """Another --seed validates on other rows; the rows of --valid are counted as read and used."""
    path = write(tmp_path / "x.jsonl", *({"text": f"text {i}"} for i in range(60)))
    encode = lambda row, tally: row.values["text"]  # noqa: E731
    first, again, other = (load(load_options(data=[str(path)], seed=seed), encode, ("text",)) for seed in (3, 3, 4))
    assert first.valid == again.valid != other.valid and len(other.valid) == 6
    few = write(tmp_path / "v.jsonl", {"text": "text 1"}, {"text": "new"}, {"text": "other"})
    tally = load(load_options(data=[str(path)], valid=[str(few)]), encode, ("text",)).tallies["valid"]
    assert (tally.read, tally.used, list(tally.noted.values())) == (3, 3, [1]), "one of the three is trained on"


def test_bad_rows_are_skipped_on_demand(tmp_path, load=examples.load):
    """With --skip-bad rows that cannot be read or encoded are counted, the first is named; without it the first
    stops."""
    path = write(
        tmp_path / "x.jsonl", {"messages": [{"role": "user", "content": "a"}]}, "{", {"prompt": "p", "completion": "c"}
    )
    encode = lambda row, tally: encoders.messages_of(row)  # noqa: E731
    loaded = load(load_options(data=[str(path)], skip_bad=True), encode, ("messages", "completion"))
    assert len(loaded.train) == 1 and loaded.tallies["data"].read == 3
    ((reason, count),) = loaded.tallies["data"].dropped.items()
    assert count == 2 and f"{path}:2" in reason
    with pytest.raises(MiniftError, match=r"x\.jsonl:2"):
        load(load_options(data=[str(path)]), encode, ("messages", "completion"))


# ---- encoders.py ----


def test_a_dialogue_is_learned_where_the_assistant_speaks(encode_dialogue=encoders.encode_dialogue):
    """prompt and completion become one exchange; labels are the answer and its <eos>; a prompt beyond the context
    is dropped."""
    tokenizer, tally = make_tokenizer(), examples.Tally()
    (row,) = as_rows({"prompt": "Where?", "completion": "Here."})
    example = encode_dialogue(row, tally, tokenizer, CONTEXT)
    assert tokenizer.decode(example["input_ids"]) == "<user>Where?<assistant>Here.<eos>"
    learned = [i for i in example["labels"] if i != -100]
    assert tokenizer.decode(learned) == "Here.<eos>" and example["labels"][-len(learned) :] == learned
    assert encode_dialogue(row, tally, tokenizer, 4) is None and sum(tally.dropped.values()) == 1
    cut = encode_dialogue(row, tally, tokenizer, len(example["input_ids"]) - 1)
    assert cut["labels"] == example["labels"][:-1] and sum(tally.noted.values()) == 1


def test_pairs_that_cannot_teach_are_dropped(encode_preference=encoders.encode_preference):
    """The same answer twice, also but for white space at its ends, and an empty answer hold no preference."""
    tally = examples.Tally()
    rows = as_rows(
        *({"prompt": "p", "chosen": a, "rejected": b} for a, b in (("x", "x"), ("x ", "x"), ("x", ""), ("x", "y")))
    )
    kept = [encode_preference(row, tally, make_tokenizer(), CONTEXT) for row in rows]
    assert [example is not None for example in kept] == [False, False, False, True]
    assert sorted(tally.dropped.values()) == [1, 2] and "n_cut" not in kept[3]


def test_a_request_leaves_room_to_answer(encode_request=encoders.encode_request):
    """A string prompt goes through the chat template, {"text"} does not; one that fills its room is dropped and
    counted."""
    tokenizer, tally = make_tokenizer(), examples.Tally()
    rows = as_rows(
        {"prompt": "Where?"}, {"prompt": [{"role": "user", "content": "Where?"}]}, {"text": "Where?"}, {"text": ""}
    )
    found = [encode_request(row, tally, tokenizer, CONTEXT) for row in rows]
    texts = [tokenizer.decode(example["input_ids"]) for example in found[:3]]
    assert texts == ["<user>Where?<assistant>", "<user>Where?<assistant>", "Where?"] and found[3] is None
    assert encode_request(rows[0], tally, tokenizer, len(found[0]["input_ids"])) is not None
    assert encode_request(rows[0], tally, tokenizer, len(found[0]["input_ids"]) - 1) is None
    assert sum(tally.dropped.values()) == 2


# ---- sampling.py, use.py ----


def test_answers_do_not_depend_on_the_batch(write_answers=sampling.write_answers):
    """Greedy answers come back in the prompts' order and are those of each prompt alone."""
    model, tokenizer = make_model(), make_tokenizer()
    prompts = [tokenizer.encode(text) for text in ("Ada has a red kite.", "fox", "Bob has a", "the mill")]
    together = write_answers(model, tokenizer, prompts, max_new_tokens=5, temperature=0.0, batch_size=2)
    for prompt, answer in zip(prompts, together):
        ids, alone = list(prompt), []
        while len(alone) < 5 and alone[-1:] != [tokenizer.eos_id]:
            alone.append(int(model(torch.tensor([ids + alone]))[0, -1].argmax()))
        assert answer == alone
    full, short = [1] * (CONTEXT - 2), [1, 2, 3]  # a batch's room is that of its longest prompt
    assert [len(answer) <= 2 for answer in write_answers(model, tokenizer, [full, short], batch_size=2)] == [True, True]


def test_a_sample_depends_on_its_seed(continuation=sampling.continuation):
    """The same words come from one seed, and others from another."""
    first, again, other = (continuation(make_model(), make_tokenizer(), [5, 7], 20, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_an_answer_has_room(room_to_answer=sampling.room_to_answer):
    """Without a wish an answer may fill the context, up to the longest; a wish that does not fit is an error with
    the place."""
    model = make_model(context_length=200)
    assert room_to_answer(model, [1] * 10, None) == sampling.LONGEST_ANSWER
    assert room_to_answer(model, [1] * 150, None) == 50 and room_to_answer(model, [1] * 150, 50) == 50
    for prompt, wish in (([1] * 200, None), ([1] * 150, 51), ([], None)):
        with pytest.raises(MiniftError, match="f:3: "):
            room_to_answer(model, prompt, wish, "f:3")


def test_a_stream_never_cuts_a_character(monkeypatch, stream_text=sampling.stream_text):
    """The pieces joined are the text, and no piece holds half a character, although each byte comes as a token of
    its own."""
    tokenizer, text = make_tokenizer(), "é😀 ok"
    ids = [*text.encode("utf-8"), tokenizer.special["<user>"], tokenizer.eos_id]
    monkeypatch.setattr(sampling, "stream", lambda *args, **kwargs: iter(ids))
    pieces = list(
        stream_text(
            make_model(), tokenizer, [1], max_new_tokens=9, temperature=0, top_k=None, top_p=None, generator=None
        )
    )
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces) and len(pieces) > 4


def test_a_chat_forgets_the_oldest_exchange(fit_history=chat.fit_history):
    """History is cut by whole exchanges, oldest first, the system's turn stays; a last turn that alone is too
    long: room 0."""
    model, tokenizer = make_model(), make_tokenizer()
    messages = [{"role": "system", "content": "Be kind."}]
    for i in range(9):
        messages += [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"answer {i}"}]
    messages.append({"role": "user", "content": "last"})
    kept, ids, room = fit_history(messages, model, tokenizer, 40)
    assert kept[0] == messages[0] and kept[-1] == messages[-1] and 3 < len(kept) < len(messages)
    assert kept[1:] == messages[len(messages) - len(kept) + 1 :] and room == 40 and len(ids) + room <= CONTEXT
    assert tokenizer.decode(ids).endswith("<user>last<assistant>")
    assert fit_history([{"role": "user", "content": "x " * 200}], model, tokenizer, 40)[2] == 0


def test_a_generated_row_keeps_what_it_had(completed=generate.completed):
    """The answer is put under "completion"; one that was there becomes the reference."""
    assert completed({"prompt": "p", "id": 3}, "new") == {"prompt": "p", "id": 3, "completion": "new"}
    assert completed({"prompt": "p", "completion": "old"}, "new") == {
        "prompt": "p",
        "reference": "old",
        "completion": "new",
    }


# ---- measures.py, run.py ----


def test_a_model_that_knows_nothing_has_a_perplexity_of_v(text_measures=measures.text_measures):
    """All logits equal: exp(mean nll) is the size of the vocabulary, over every token but the first, windows or not."""
    model, tokenizer = make_model(), make_tokenizer()
    torch.nn.init.zeros_(model.head.weight)
    rows = as_rows({"text": WORDS * 4}, {"text": "fox"})
    found = text_measures(model, tokenizer, rows, SimpleNamespace(batch_size=3, context=None))
    n = sum(len(tokenizer.encode(row.values["text"])) for row in rows)
    assert found["tokens"] == n and found["perplexity"] == pytest.approx(300, rel=1e-5)


def test_exact_match_is_with_the_last_answer(monkeypatch, answer_measures=measures.answer_measures):
    """The prompt is everything before the last assistant turn, the reference that turn; half right is 0.5, with
    its spread."""
    tokenizer, asked = make_tokenizer(), []
    rows = as_rows(
        *(
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "content": "wrong"},
                    {"role": "user", "content": "b"},
                    {"role": "assistant", "content": answer},
                ]
            }
            for answer in "xyzw"
        )
    )

    def answer(model, tokenizer, prompts, **settings):
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [tokenizer.encode(text) + [tokenizer.eos_id] * (text == "x") for text in ("x", "y", "no", "wrong")]

    monkeypatch.setattr(measures, "write_answers", answer)
    found = answer_measures(make_model(), tokenizer, rows, SimpleNamespace(max_new_tokens=None, batch_size=2, show=0))
    assert found["exact_match"] == 0.5 and found["ends_with_eos"] == 0.25 and found["exact_match_95%"] == "0 to 1"
    assert set(asked) == {"<user>a<assistant>wrong<eos><user>b<assistant>"}


def test_pairs_are_judged_by_what_the_model_is(monkeypatch, pair_measures=measures.pair_measures):
    """A language model by log p of the answers, summed, its <eos> included: compared with torch's own log_softmax."""
    model, tokenizer = make_model(), make_tokenizer()
    rows = as_rows(
        {"prompt": "fox", "chosen": "the mill", "rejected": "kite"},
        {"prompt": "fox", "chosen": "kite", "rejected": "end"},
    )

    def logprob(prompt, answer):
        ids = torch.tensor(
            [
                tokenizer.special["<user>"],
                *tokenizer.encode(prompt),
                tokenizer.special["<assistant>"],
                *tokenizer.encode(answer),
                tokenizer.eos_id,
            ]
        )
        n = len(tokenizer.encode(answer)) + 1
        return model(ids[None])[0].log_softmax(-1)[:-1].gather(1, ids[1:, None])[-n:].sum().item()

    gaps = [logprob("fox", row.values["chosen"]) - logprob("fox", row.values["rejected"]) for row in rows]
    found = pair_measures(model, tokenizer, rows, SimpleNamespace(batch_size=2, context=None, reference=None))
    assert found["gap"] == pytest.approx(sum(gaps) / 2, abs=1e-4)
    assert found["logprob_accuracy"] == sum(gap > 0 for gap in gaps) / 2


def test_validation_weighs_tokens(mean_metrics=run.mean_metrics):
    """The validation loss is the mean over all items, not the mean of the batches' means; a batch without items
    counts nothing."""
    batches = [
        {"loss": torch.tensor(1.0), "n": 3},
        {"loss": torch.tensor(5.0), "n": 1},
        {"loss": torch.tensor(9.0), "n": 0},
    ]
    found = mean_metrics(
        make_model(), lambda batch: (batch["loss"], {"n_tokens": batch["n"], "half": batch["loss"] / 2}), batches, "cpu"
    )
    assert found == {"valid_loss": 2.0, "valid_half": 1.0}


def test_validation_is_without_dropout(mean_metrics=run.mean_metrics):
    """A model in training mode is measured in evaluation mode, and is in training mode again afterwards."""
    model, modes = make_model().train(), []

    def loss_fn(batch):
        modes.append(model.training)
        return torch.tensor(1.0), {"n_tokens": 1}

    mean_metrics(model, loss_fn, [{}], "cpu")
    assert modes == [False] and model.training


def watch_of(tmp_path, prompts, reward_fn=None, reference=None):
    """What ppo calls after each iteration, for a run that only counts how often its weights were kept."""
    tokenizer, model = make_tokenizer(), make_model()
    chosen = SimpleNamespace(eval_every=1, iterations=9, resume=False, seed=0, batch_size=2)
    saved = []
    run = SimpleNamespace(
        options=chosen,
        metrics_path=tmp_path / "metrics.jsonl",
        device=torch.device("cpu"),
        tokenizer=tokenizer,
        model=model,
        save=lambda: saved.append(len(saved)),
    )
    config = SimpleNamespace(max_new_tokens=6, temperature=1.0, beta=0.2, missing_eos_penalty=0.5)
    return rollouts.Watch(run, config, reward_fn, reference, prompts), saved


def test_ppo_is_judged_by_score_minus_beta_kl(tmp_path, watch_of=watch_of):
    """A reference that gives every token 0.3 nats less is 0.3 nats a token away: the objective is score - penalty
    - beta * KL."""
    policy = make_model()

    def reference(input_ids, attention_mask):
        return make_reference(policy)(input_ids, attention_mask) - 0.3

    measured = watch_of(
        tmp_path, [[1, 2], [3], [4, 5, 6]], lambda out: torch.full((len(out.input_ids),), 2.0), reference
    )[0].before
    assert measured["valid_kl"] == pytest.approx(6 * 0.3, abs=1e-4), "no answer ended early with this seed"
    assert measured["valid_score"] == pytest.approx(1.5) and measured["valid_objective"] == pytest.approx(
        1.5 - 0.2 * 1.8, abs=1e-4
    )


def test_ppo_keeps_the_best_iteration(tmp_path, monkeypatch, watch_of=watch_of):
    """Weights are kept when the held-out objective improves, and only then; a resumed run forgets the rows it will
    repeat."""
    objectives = iter([0.0, 1.0, 3.0, 2.0, 3.0, 4.0, 5.0])
    monkeypatch.setattr(rollouts.Watch, "measure", lambda self: {"valid_objective": next(objectives)})
    watch, saved = watch_of(tmp_path, [[1]])
    for iteration in range(1, 6):
        watch({"iteration": iteration})
    assert len(saved) == 3 and watch.best["iteration"] == 5
    watch({"iteration": 3})
    assert [row["iteration"] for row in watch.rows] == [1, 2, 3] and watch.best["iteration"] == 3
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").count("\n") == 3


def test_ppo_ends_with_the_best_iteration(tmp_path, monkeypatch):
    """With held-out prompts the folder and run.json tell of the best iteration, not of the last."""
    objectives, saved = iter([1.0, 5.0, 3.0]), []
    monkeypatch.setattr(rollouts.Watch, "measure", lambda self: {"valid_objective": next(objectives)})
    monkeypatch.setattr(run.Run, "save", lambda self: saved.append(self))
    (tmp_path / "r.py").write_text("def score(prompts, responses):\n    return [1.0]\n", encoding="utf-8")
    prompts = write(tmp_path / "p.jsonl", {"prompt": "Where is the fox?"})
    valid = write(tmp_path / "v.jsonl", {"prompt": "Where is Ada?"})
    words = ["ppo", "--model", save_tiny(tmp_path / "m"), "--data", prompts, "--valid", valid,
             "--out", tmp_path / "out", "--reward-fn", f"{tmp_path / 'r.py'}:score", "--iterations", 2,
             "--batch-size", 1, "--max-new-tokens", 2, "--eval-every", 1]
    assert main([str(word) for word in words]) == 0 and len(saved) == 1
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert (record["best_step"], record["before"], record["result"]["valid_objective"]) == (
        1, {"valid_objective": 1.0}, 5.0)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("lora", [2, None])
def test_values_begin_where_they_should(known, lora, first_values=value_model.first_values):
    """The reward model's own scores, or 0 where there is none; with LoRA no weight of a body is there twice, and
    training the values changes neither model that it was made from."""
    policy, judge, ids = make_model(), make_model("TokenScorer", seed=1, norm_eps=1e-5 if known else 1e-6), IDS
    before = [policy(ids), judge(ids)]
    chosen = SimpleNamespace(lora=lora, checkpointing=False)
    stub = SimpleNamespace(model=policy, options=chosen, device=torch.device("cpu"))
    values = first_values(stub, judge)
    assert torch.equal(values(ids), before[1] if known else torch.zeros(ids.shape))
    source = {parameter.data_ptr() for parameter in (judge if known else policy).parameters()}
    own = [parameter.data_ptr() not in source for parameter in values.parameters()]
    trained = [parameter.requires_grad for parameter in values.parameters()]
    assert any(trained) and (own == trained if lora else all(own))
    with torch.no_grad():
        for parameter in values.parameters():
            parameter += parameter.requires_grad
    assert not torch.equal(values(ids), before[1])
    assert torch.equal(policy(ids), before[0]) and torch.equal(judge(ids), before[1])


# ---- run.py: what is kept ----


def test_the_best_adapter_comes_back(tmp_path, reload=run.Run.reload):
    """After the training the model is what was saved last, its best weights, though it went on from there."""
    model = add_lora(make_model(), 2, 4)
    torch.nn.init.normal_(model.body.layers[0].attn.q_proj.lora_B)
    save_adapter(model, tmp_path)
    best = model(IDS)
    torch.nn.init.ones_(model.body.layers[0].attn.q_proj.lora_B)
    assert not torch.equal(model(IDS), best)
    reload(SimpleNamespace(options=SimpleNamespace(lora=2), model=model, out=tmp_path))
    assert torch.equal(model(IDS), best)


def test_a_new_base_is_written_first(tmp_path, recorded=run.Run.recorded, save=run.Run.save):
    """An adapter upon an adapter: the merged base is written before the training; it is the new one's."""
    base = make_model()
    stub = SimpleNamespace(options=SimpleNamespace(lora=2, overwrite=False), tokenizer=None, out=tmp_path, record={},
                           new_base=base, model=add_lora(models.plain_copy(base), 2, 4), base=tmp_path / "elsewhere")
    with recorded(stub):
        assert stub.new_base is None and torch.equal(load_model(tmp_path / "base")[0](IDS), base(IDS))
    save(stub)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == (tmp_path / "base").as_posix()


# ---- models.py, rewards.py, folders.py, options.py, data_report.py ----


@pytest.mark.parametrize("resume", [True, False])
def test_resuming_clears_nothing(resume, tmp_path, recorded=run.Run.recorded):
    """--overwrite clears the folder before a new run, but not the state that --resume goes on from."""
    state = tmp_path / "state.safetensors"
    state.write_bytes(b"state")
    chosen = SimpleNamespace(overwrite=True, resume=resume)
    with recorded(SimpleNamespace(options=chosen, out=tmp_path, record={}, new_base=None)):
        assert state.exists() == resume


def test_a_plain_copy_computes_the_same(plain_copy=models.plain_copy):
    """Merging an adapter into a new model changes its outputs by no more than rounding, and leaves no wrapper
    behind."""
    model = add_lora(make_model(), 4, 8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    ids = torch.randint(300, (2, 9))
    expected = model(ids).detach()
    copy = plain_copy(model)
    assert not any("lora" in name for name, _ in copy.named_parameters()) and not torch.allclose(
        make_model()(ids), expected, atol=0.01
    )
    torch.testing.assert_close(copy(ids), expected, atol=1e-5, rtol=0)


def generation_of(tokenizer, pairs):
    """A Generation of left-padded prompts and their responses."""
    rows = [(tokenizer.encode(prompt), tokenizer.encode(answer) + [tokenizer.eos_id]) for prompt, answer in pairs]
    T = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.tensor([[0] * (T - len(p) - len(a)) + p + a for p, a in rows])
    real = torch.tensor([[False] * (T - len(p) - len(a)) + [True] * len(p + a) for p, a in rows])
    written = torch.tensor([[False] * (T - len(a)) + [True] * len(a) for p, a in rows])
    return Generation(ids, real, written, torch.zeros(len(rows), T - 1))


def test_a_reward_model_reads_what_may_come(tmp_path, open_reward_model=rewards.open_reward_model):
    """A reward model with a shorter context than the policy's serves where --context leaves out what it cannot read."""
    path = save_tiny(tmp_path / "judge", "TokenScorer", context_length=64)
    stub = SimpleNamespace(model=make_model(), tokenizer=make_tokenizer(), options=SimpleNamespace(model="m"),
                           device=torch.device("cpu"), context=64)
    assert open_reward_model(path, stub).config.context_length == 64
    stub.context = 65
    with pytest.raises(MiniftError, match="reads 64 tokens, but 65 may come; add --context 64"):
        open_reward_model(path, stub)


def test_a_reward_function_sees_texts(reward_from_function=rewards.reward_from_function):
    """The function gets the prompts of the file and the responses without special tokens, and its floats become
    the scores."""
    tokenizer, seen = make_tokenizer(), []
    prompts = {tuple(tokenizer.encode(text)): {"the row": text} for text in ("fox", "Bob has")}
    generation = generation_of(tokenizer, [("Bob has", "a kite"), ("fox", "end")])
    reward_fn = reward_from_function(lambda p, r: seen.extend([p, r]) or [1, 2.5], "f.py:f", tokenizer, prompts)
    assert reward_fn(generation).tolist() == [1.0, 2.5]
    assert seen == [[{"the row": "Bob has"}, {"the row": "fox"}], ["a kite", "end"]]
    for wrong, sign in (
        ([1.0], "1 numbers for 2"),
        ([1.0, math.nan], "nan"),
        ([1.0, math.inf], "inf"),
        (["a", 1], "raised ValueError"),
        (None, "raised TypeError"),
    ):
        with pytest.raises(MiniftError, match=sign):
            reward_from_function(lambda p, r, wrong=wrong: wrong, "f.py:f", tokenizer, prompts)(generation)


def test_a_reward_file_is_blamed_with_its_line(tmp_path, open_function=rewards.open_function):
    """file.py:function is imported; a missing file or name, or a file that does not run, is one sentence."""
    file = tmp_path / "r.py"
    file.write_text("def score(p, r):\n    return [len(x) for x in r]\n", encoding="utf-8")
    assert open_function(f"{file}:score")([], ["ab"]) == [2]
    broken = tmp_path / "b.py"
    broken.write_text("import math\nmath.no_such\n", encoding="utf-8")
    for name, sign in (
        (f"{file}:other", "no function called other"),
        (str(file), "expected"),
        (f"{tmp_path}/x.py:f", "expected"),
        (f"{broken}:f", r"b\.py:2 raised AttributeError"),
    ):
        with pytest.raises(MiniftError, match=sign):
            open_function(name)


def test_a_folder_in_use_is_not_written_over(tmp_path, check_out=folders.check_out):
    """New and empty folders will do; one with files wants --overwrite; a file, the model's own folder, and no
    permission do not."""
    check_out(tmp_path / "new" / "deep")
    check_out(tmp_path / "new" / "deep")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    check_out(tmp_path, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "new"]
    for out, arguments, sign in (
        (tmp_path, {}, "is not empty"),
        (tmp_path / "file", {}, "is a file"),
        (tmp_path / "file" / "x", {}, "cannot write"),
        (tmp_path, {"resume": True}, "no run that was stopped"),
        (tmp_path / "new", {"sources": [tmp_path / "." / "new"], "overwrite": True}, "read from"),
    ):
        with pytest.raises(MiniftError, match=sign):
            check_out(out, **arguments)


def test_only_our_own_files_are_removed(tmp_path, clear=folders.clear):
    """--overwrite removes what a run writes, and nothing of the user's."""
    for name in ("model.safetensors", "run.json", "thesis.txt"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "kind, least, above, most, good, bad",
    [
        (int, 1, False, math.inf, ("1", "7"), ("0", "-1", "1.5", "x", "nan")),
        (float, 0, True, math.inf, ("1e-9",), ("0", "-1", "inf", "nan")),
        (float, 0, False, 0.49, ("0", "0.49"), ("0.5", "-0.1")),
    ],
)
def test_impossible_numbers_are_refused(kind, least, above, most, good, bad, number=options.number):
    """Bounds hold, the ends count as they should, and NaN and infinity are no settings."""
    read = number(kind, least, above, most)
    assert all(read(text) == kind(text) for text in good)
    for text in bad:
        with pytest.raises(Exception, match="expected a"):
            read(text)


def test_check_data_counts_prompts_without_room(sequences_of=data_report.sequences_of):
    """A prompt that fills the context leaves no token to an answer; with one token more there is room."""
    tokenizer, tally = make_tokenizer(), examples.Tally()
    row = row_files.Row("x:1", "prompt", {"prompt": "Where is the fox?"})
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "Where is the fox?"}])
    assert sequences_of(row, tally, tokenizer, len(ids)) == [] and sum(tally.dropped.values()) == 1
    assert sequences_of(row, tally, tokenizer, len(ids) + 1)[0][0] == ids


def test_learned_tokens_are_seen(monkeypatch, coloured=data_report.coloured):
    """On a terminal learned tokens are green and the others grey; elsewhere, or with NO_COLOR, learned ones stand
    in guillemets."""
    tokenizer = make_tokenizer()
    ids, labels = tokenizer.encode("ab") + [tokenizer.eos_id], [-100, tokenizer.encode("b")[0], tokenizer.eos_id]
    assert coloured(tokenizer, ids, labels) == "a«b<eos>»"
    monkeypatch.setattr(data_report.sys, "stdout", SimpleNamespace(isatty=lambda: True))
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert coloured(tokenizer, ids, labels) == "\x1b[90ma\x1b[0m\x1b[1;32mb<eos>\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert coloured(tokenizer, ids, labels) == "a«b<eos>»"


def test_counters_are_words(tally_class=examples.Tally):
    """A tally reads as a sentence: rows, used, and every reason with its count."""
    tally = tally_class(5, 2, Counter({"too long": 2}), Counter({"odd": 1}))
    assert str(tally) == "5 rows, 2 used; 2 dropped: too long; 1 odd"
