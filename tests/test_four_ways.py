"""The study of the four ways: rows in one form, equal tokens, wrong labels counted, and going on where it stopped."""

import json
from itertools import combinations

import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.evaluation.metrics import rouge_l
from minift.formats.checkpoint import load_model, save_model
from minift.studies.four_ways import __main__ as study
from minift.studies.four_ways import report, rows, tuning
from minift.text.chat import check_messages, encode_chat
from minift.text.jsonl import read_jsonl
from minift.text.tokenizer import Tokenizer
from minift.ways.self_instruct import prompt_of, task_of_row
from minift.world.checker import make_verdict
from minift.world.corpus import stories

N_TOKENS, STEPS = 3000, 2


class Writer:
    """Writes tasks of the seeds' kind; every third has the answer of another, one in ten is in no form."""

    def __init__(self, model, tokenizer, seed=0, **_):
        tasks = [task_of_row(row, 1) for row in rows.seed_tasks(TEMPLATES, 300, f"writer of the test/{seed}")]
        self.tasks, self.n_tokens = iter(enumerate(tasks)), 0

    def __call__(self, prompt):
        self.n_tokens += 100
        i, (task, story, answer) = next(self.tasks)
        answer = ("nobody knows", answer, answer)[i % 3]
        return "Lost." if i % 10 == 0 else prompt_of([(task, story, answer)]).removesuffix("\nTask:")[5:]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A decoder 16 wide, with a tokenizer of the stories."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(stories(60, 0), 500)
    model = LanguageModel(TransformerConfig(vocab_size=tokenizer.vocab_size, context_length=320, n_layer=1, n_head=2,
                                            d_model=16, d_ff=16))
    save_model(model, tokenizer, path := tmp_path_factory.mktemp("base") / "model")
    return path


TEMPLATES = rows.read_templates(rows.INSTRUCTIONS / "templates.json")


@pytest.fixture
def maker(base, tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "ModelWriter", Writer)
    return rows.Maker(0, base, tmp_path, N_TOKENS, 2 * N_TOKENS, writer_steps=1)


def n_tokens(maker, made):
    return sum(len(encode_chat(maker.tokenizer, row["messages"])[0]) for row in made)


def test_every_way_writes_the_same_form_and_the_same_tokens(maker):
    """Each file holds messages, task, cluster, source and id, as many tokens as the others, no id twice; a row of the
    mixture is a row of one of the four, a quarter of the tokens from each."""
    made = {way: maker.make(way)[0] for way in rows.WAYS}
    for way, part in made.items():
        wanted = 2 * N_TOKENS if way == "templates, many" else N_TOKENS
        assert wanted - 320 < n_tokens(maker, part) <= wanted, way
        for row in part:
            check_messages(row["messages"], need_assistant=True)
            assert {"task", "cluster", "source", "id"} <= row.keys()
        assert len({row["id"] for row in part}) == len(part)
        assert part == maker.make(way)[0]       # from the disk
    for way in ("people", "templates", "crowd", "model"):
        shared = [row for row in made["mixture"] if row in made[way]]
        assert N_TOKENS / 4 - 320 < n_tokens(maker, shared) <= N_TOKENS / 4


def test_what_is_wrong_is_counted(maker):
    """The checker lets nothing through that is not true; without it a third is wrong; the labels of one person with
    vague guidelines are worse than those of three with clear ones, and cheaper."""
    checked, unchecked = maker.make("model")[1], maker.make("model, unchecked")[1]
    assert checked["label_error"] == checked["unclear"] == 0 and 0.2 < unchecked["label_error"] < 0.5
    assert checked["statistics"]["rejected"]["not true"] > 3 and "not true" not in unchecked["statistics"]["rejected"]
    assert unchecked["statistics"]["rejected"]["not in the form"] > 0
    clear, vague = maker.make("crowd")[1], maker.make("crowd, vague")[1]
    assert clear["label_error"] < vague["label_error"] and clear["minutes"] > vague["minutes"]


def test_nobody_is_tested_on_what_was_trained_on(maker):
    """The held-out rows by people are in no way; the tasks' stories and wordings are not those of the training."""
    trained = [row for way in rows.WAYS for row in maker.make(way)[0]]
    said = {message["content"] for row in trained for message in row["messages"] if message["role"] == "user"}
    tests = tuning.tests(maker, 56)
    assert len(tests["people"]) > 90 and len(tests["tasks"]) > 50
    assert not said & {row["prompt"][-1]["content"] for part in tests.values() for row in part}
    assert all(row["prompt"][-1]["role"] == "user" for part in tests.values() for row in part)
    assert not {"generation", "inversion"} & {row["cluster"] for row in tests["tasks"]}


def test_a_step_has_as_many_tokens_whatever_the_rows(maker, base, monkeypatch):
    """Short rows and long rows: the batch is as large as makes the tokens of a step alike; the base stays as it is."""
    sizes = []
    monkeypatch.setattr(tuning, "tune_on_examples", lambda model, tokenizer, examples, batch_size, **_: sizes.append(
        batch_size * sum(len(one["input_ids"]) for one in examples) / len(examples)))
    for way in ("people", "templates"):
        tuning.fit(base, maker.make(way)[0], 0)
    assert sizes == pytest.approx([tuning.TOKENS_A_STEP] * 2, rel=0.05)


def test_diversity_by_hand(diversity=tuning.diversity):
    """Three turns, two of them alike but for one word of five; of 16 pairs of words in all texts 10 are different."""
    made = [{"messages": [{"role": "user", "content": turn}, {"role": "assistant", "content": "a b c"}], "cluster": "x"}
            for turn in ("the red kite is here", "the red kite was here", "who saw it")]
    found = diversity(made)
    turns = [row["messages"][0]["content"] for row in made]
    assert found["nearest"] == pytest.approx((0.8 + 0.8 + max(rouge_l(turns[2], turns[0]), 0)) / 3)
    assert found["distinct_2"] == pytest.approx(10 / 16)


def test_the_score_by_hand(monkeypatch, score=tuning.score):
    """Two of three answers are right, one ended late; the clusters' shares are those of their rows."""
    made = [{"prompt": "?", "right": text, "cluster": cluster}
            for text, cluster in (("red kite", "a"), ("blue", "a"), ("x", "b"))]
    said = [("red kite", True), ("blue", False), ("red kite", True)]
    monkeypatch.setattr(tuning, "sample_answers", lambda *_, **__: [
        type("Answer", (), {"text": text, "ended": ended}) for text, ended in said])
    assert score(None, None, made) == {"exact": pytest.approx(2 / 3), "rouge": pytest.approx(2 / 3),
                                       "ended": pytest.approx(2 / 3), "clusters": {"a": 1.0, "b": 0.0}}


def test_an_interrupted_study_goes_on(tmp_path, base, monkeypatch, run=study.run):
    """Cells on the disk are not measured again; in the end there are a table, a picture and all numbers."""
    monkeypatch.setattr(rows, "ModelWriter", Writer)
    monkeypatch.setattr(rows, "N_HELD_OUT", 6)
    arguments = {"out": tmp_path, "base": base, "seeds": (0, 1), "ways": ("base", "people", "model"), "steps": STEPS,
                 "n_test": 14, "n_tokens": N_TOKENS, "writer_steps": 1}
    first = run(**arguments)
    cell = tmp_path / "cells" / "people-1.json"
    kept = json.loads(cell.read_text())
    kept["scores"]["tasks"]["exact"] = 0.5
    cell.write_text(json.dumps(kept))
    monkeypatch.setattr(study, "measure", lambda *_: pytest.fail("measured again"))
    again = run(**arguments)
    assert again["ways"]["model"] == first["ways"]["model"]
    old = json.loads((tmp_path / "cells" / "people-0.json").read_text())["scores"]["tasks"]["exact"]
    assert again["ways"]["people"]["scores"]["tasks"]["exact"]["mean"] == pytest.approx((old + 0.5) / 2)
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert [line.split(" | ")[0] for line in table.splitlines()[2:5]] == ["| base", "| people", "| model"]
    assert "clear" in table and (tmp_path / "ways.png").stat().st_size > 10_000
    assert (tmp_path / "seed-0" / "people.jsonl").exists()


def test_the_writer_is_tuned_and_the_base_is_not(base, make_writer=rows.make_writer):
    """The writer differs from the base after two steps; the folder of the base still holds what it held."""
    before = load_model(base)[0].state_dict()
    after = make_writer(base, TEMPLATES, 2)[0].state_dict()
    assert all(torch.equal(tensor, load_model(base)[0].state_dict()[name]) for name, tensor in before.items())
    assert not all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_rows_of_a_model_that_come_along_are_checked_and_new(path=rows.INSTRUCTIONS / "model.jsonl"):
    """data/instructions/model.jsonl: true of their stories, which are neither each other's nor those of the seeds."""
    made, verdict = read_jsonl(path), make_verdict(TEMPLATES)
    turns = [[message["content"] for message in row["messages"]] for row in made]
    assert len(turns) >= 200 and all(verdict(*turn) for turn in turns)
    assert not any(verdict(question, "nobody knows") for question, _ in turns[:20])
    seeds = {row["messages"][0]["content"] for row in rows.seed_tasks(TEMPLATES, rows.N_SEED_TASKS, 0)}
    assert not seeds & {question for question, _ in turns}
    assert max(rouge_l(a, b) for (a, _), (b, _) in combinations(turns[:30], 2)) < 0.7


def test_summary_is_mean_and_std_over_seeds(summary=report.summary):
    """Of 0.5 and 0.7 the mean is 0.6, the sample standard deviation 0.2 / sqrt(2); what one seed lacks stays out."""
    found = summary([{"scores": {"exact": 0.5}, "minutes": None}, {"scores": {"exact": 0.7}, "minutes": 3}])
    assert found["minutes"] is None
    assert found["scores"]["exact"] == {"mean": pytest.approx(0.6), "std": pytest.approx(0.2 / 2**0.5)}
