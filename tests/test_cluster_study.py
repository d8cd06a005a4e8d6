"""The study of withheld clusters: its chats, how answers are judged, folds that resume, and the command."""

import json
from pathlib import Path

import pytest
import torch
from test_jobs import make_tokenizer, save_tiny, write

from minift.__main__ import main
from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.evaluation.clusters import check_leaks, leave_one_cluster_out
from minift.formats.checkpoint import load_model
from minift.studies import cluster_study
from minift.text.answers import Answer
from minift.ways.templates import read_templates
from minift.world.tasks import TASKS

ANSWERS = {"who": ("lookup", ("Ada", "Bob")), "where": ("lookup", ("at the mill", "the mill")),
           "mood": ("sentiment", ("happy", "fox")), "count": ("counting", ("red", "blue"))}


def chats(n=2):
    """n rows of each of four tasks in three clusters; no text occurs twice."""
    return [{"messages": [{"role": "user", "content": f"{task} {i}?"},
                          {"role": "assistant", "content": answers[i % 2]}], "task": task, "cluster": cluster}
            for task, (cluster, answers) in ANSWERS.items() for i in range(n)]


def tiny(seed=0):
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size=300, context_length=48, n_layer=1, n_head=2, d_model=32, d_ff=64)
    return LanguageModel(config).eval()


def test_the_worlds_chats_leak_nowhere(world_chats=cluster_study.world_chats):
    """Every task is there, asks for the bare answer, and no fold has a text, scene or template on both sides."""
    rows = world_chats(3 * len(TASKS), 0)
    assert {row["task"] for row in rows} == set(TASKS)
    for fold in leave_one_cluster_out(rows):
        check_leaks(fold.train, fold.test)
    templates = read_templates(cluster_study.TEMPLATES)
    for row in rows:
        task, number = row["template"].split("/")
        template = templates[task]["templates"][int(number) - 1]
        assert template["response"] == "{answer}" and not template["inverted"]


def test_learned_answers_are_right_and_others_are_not(assess=cluster_study.assess):
    """A model that was tuned on some chats until it knows them scores 1 on them; for wrong answers it scores 0."""
    model, tokenizer, rows = tiny(), make_tokenizer(), chats()
    history = cluster_study.tune_on_chats(model, tokenizer, rows, steps=150, lr=1e-2, batch_size=8)
    assert history[-1]["loss"] < 0.05
    found = assess(model.eval(), tokenizer, rows)
    assert all(found[metric] == dict.fromkeys(ANSWERS, 1.0) for metric in ("exact_match", "rouge_l", "ends_with_eos"))
    assert found["rank"] == dict.fromkeys(ANSWERS, 1.0) and found["rank_chance"] == dict.fromkeys(ANSWERS, 0.5)
    wrong = [{**row, "messages": [row["messages"][0], other["messages"][1]]}
             for pair in zip(rows[::2], rows[1::2]) for row, other in (pair, pair[::-1])]
    swapped = assess(model, tokenizer, wrong)
    assert swapped["exact_match"] == swapped["rank"] == dict.fromkeys(ANSWERS, 0.0)


def test_an_answer_that_does_not_end_is_not_right(monkeypatch, assess=cluster_study.assess):
    """The right words without <eos> are no exact match: whoever reads them gets what follows, too."""
    def answer_without_end(model, tokenizer, prompts, **_):
        return [Answer(prompt, [1], [], right[prompt], prompt.startswith("who")) for prompt in prompts]

    rows = chats()
    right = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows}
    monkeypatch.setattr(cluster_study, "sample_answers", answer_without_end)
    found = assess(tiny(), make_tokenizer(), rows)
    assert found["exact_match"] == {"who": 1.0, "where": 0.0, "mood": 0.0, "count": 0.0}
    assert found["rouge_l"] == dict.fromkeys(ANSWERS, 1.0)


def test_options_hold_the_right_answer_first(options_of=cluster_study.options_of):
    """The right answer, then other answers of the task, none twice; the same each time."""
    right = ["a", "b", "a", "c", "d", "e"]
    found = list(options_of(right))
    assert [options[0] for options in found] == right
    assert all(len(options) == len(set(options)) == cluster_study.N_OPTIONS for options in found)
    assert found == list(options_of(right)) and list(options_of(["x", "x"])) == [["x"], ["x"]]


def study(out, seeds=(0,), numbers=(0, 1, "all"), steps=2, rows=None):
    def open_base():
        return tiny(), make_tokenizer()

    return cluster_study.run(out, open_base, lambda seed: rows or chats(), numbers=numbers, seeds=seeds,
                             settings={"steps": steps, "lr": 1e-2})


def test_a_study_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    """Folds on disk are not tuned again, and the results are those of a study that was never stopped."""
    whole = study(tmp_path / "whole", seeds=(0, 1))
    study(tmp_path / "parts")
    tuned, tune = [], cluster_study.tune_on_chats
    monkeypatch.setattr(cluster_study, "tune_on_chats",
                        lambda *args, **keys: tuned.append(keys["seed"]) or tune(*args, **keys))
    parts = study(tmp_path / "parts", seeds=(0, 1))
    assert parts == whole and set(tuned) == {1} and len(tuned) == 2 * 3       # two numbers of clusters, three folds
    assert json.loads((tmp_path / "parts" / "results.json").read_text(encoding="utf-8")) == json.loads(
        json.dumps(whole))
    assert (tmp_path / "parts" / "clusters.png").stat().st_size > 10_000


def test_as_many_clusters_are_tuned_on_as_the_number_says(tmp_path, monkeypatch):
    """0: nothing is tuned; 1: one cluster in each fold; "all": every one but the withheld."""
    seen = []
    monkeypatch.setattr(cluster_study, "tune_on_chats", lambda model, tokenizer, rows, **_: seen.append(
        {row["cluster"] for row in rows}))
    study(tmp_path, numbers=(0, 1, "all"))
    assert [len(names) for names in seen] == [1, 1, 1, 2, 2, 2]
    assert seen[3:] == [{"lookup", "sentiment"}, {"counting", "sentiment"}, {"counting", "lookup"}]


def test_folds_that_were_tuned_otherwise_are_not_mixed(tmp_path):
    """Other steps or another rate in the same folder is refused, and says which of them differs."""
    study(tmp_path, numbers=("all",))
    with pytest.raises(MiniftError, match="steps 2, not 3"):
        study(tmp_path, numbers=("all",), steps=3)


def test_the_base_is_the_model_that_nobody_tuned(tmp_path):
    """Under number 0 stand the scores of the base itself on each withheld cluster."""
    found = study(tmp_path, numbers=(0,))["numbers"]["0"]
    own = cluster_study.assess(tiny(), make_tokenizer(), [row for row in chats() if row["cluster"] == "lookup"])
    assert found["rank"]["lookup"]["mean"] == pytest.approx(sum(own["rank"].values()) / 2)
    assert set(found["rank"]) == {"lookup", "sentiment", "counting", "macro", "micro"}


def test_the_command_runs_and_resumes(tmp_path, capsys):
    """evaluate --leave-one-cluster-out on a user's own rows: a table, results.json, a chart; and again at once."""
    model, rows = save_tiny(tmp_path / "model"), write(tmp_path / "rows.jsonl", *chats())
    argv = ["evaluate", "--leave-one-cluster-out", "--model", str(model), "--data", str(rows), "--out",
            str(tmp_path / "out"), "--clusters", "1", "9", "--steps", "2"]
    assert main(argv) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert list(results["numbers"]) == ["0", "1", "all"] and "--leave-one-cluster-out" in results["command"]
    before = capsys.readouterr().out
    assert "macro" in before and "exact match, and it stops" in before
    folds = {path: path.stat().st_mtime_ns for path in Path(tmp_path / "out" / "folds").iterdir()}
    assert main(argv) == 0 and folds == {path: path.stat().st_mtime_ns for path in folds}
    assert load_model(model)[0].config.d_model == 16        # the base on disk is as it was


@pytest.mark.parametrize(("change", "message"), [
    (lambda row: row.pop("task"), "rows.jsonl:1: the key 'task' is missing"),
    (lambda row: row.update(cluster=""), "rows.jsonl:1: the key 'cluster' is missing"),
    (lambda row: row.update(messages=row["messages"] * 2), "rows.jsonl:1: expected one user turn"),
    (lambda row: row["messages"][0].update(content="where 0?"), "leak"),
    (lambda row: row["messages"][0].update(content="Ada " * 200), "rows.jsonl:1: the prompt has"),
])
def test_rows_that_cannot_be_judged_are_named(tmp_path, capsys, change, message):
    """One sentence with file and line, exit code 2, before anything is tuned."""
    rows = chats()
    rows[0]["cluster"] = "naming"
    change(rows[0])
    if message == "leak":
        rows[0]["task"] = "new"
    argv = ["evaluate", "--leave-one-cluster-out", "--model", str(save_tiny(tmp_path / "model")), "--data",
            str(write(tmp_path / "rows.jsonl", *rows)), "--out", str(tmp_path / "out"), "--steps", "2"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out" / "folds").exists()
