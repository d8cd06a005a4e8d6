"""Leave one cluster out: the folds, the leak detector, the run over all folds, averages, ranking of options."""

import json
import math
import random

import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.logprobs import token_logprobs
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.evaluation import clusters

TASKS = {"who": "lookup", "where": "lookup", "ending": "sentiment", "mood": "sentiment", "count": "numbers"}
STORY = ("Ada went to the old mill with her fox and a red kite, and then the kite broke in two, so that Ada was sad, "
         "but the miller mended it before night.")


def rows(per_task=3, tasks=None):
    """Rows without any leak: names, scenes, templates and words of their own for each."""
    made = []
    for task, cluster in (tasks or TASKS).items():
        for i in range(per_task):
            made.append({"task": task, "cluster": cluster, "id": f"{task}-{i}", "template": f"{task}/{i % 2}",
                         "scene": f"scene of {task} {i}",
                         "messages": [{"role": "user", "content": f"Tell me {task} number {i}."},
                                      {"role": "assistant", "content": "Yes."}]})
    return made


def asking(text, **keys):
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Yes."}], **keys}


# ---- folds ----


def test_each_cluster_is_withheld_once(leave_one_cluster_out=clusters.leave_one_cluster_out):
    """As many folds as clusters; each is assessed in one fold, and everything is either trained or assessed in each."""
    data = rows()
    folds = leave_one_cluster_out(data)
    assert [fold.cluster for fold in folds] == ["lookup", "numbers", "sentiment"]
    assert sorted(row["id"] for fold in folds for row in fold.test) == sorted(row["id"] for row in data)
    for fold in folds:
        assert fold.test == [row for row in data if row["cluster"] == fold.cluster]
        assert fold.train == [row for row in data if row["cluster"] != fold.cluster]


def test_names_of_tasks_give_the_same_folds(leave_one_cluster_out=clusters.leave_one_cluster_out):
    """From {task: cluster} the folds hold the tasks' names, in the order in which they were given."""
    folds = leave_one_cluster_out(TASKS)
    assert [tuple(fold) for fold in folds] == [
        ("lookup", ["ending", "mood", "count"], ["who", "where"]),
        ("numbers", ["who", "where", "ending", "mood"], ["count"]),
        ("sentiment", ["who", "where", "count"], ["ending", "mood"])]
    for fold, named in zip(leave_one_cluster_out(rows()), folds):
        assert list(dict.fromkeys(row["task"] for row in fold.train)) == named.train


@pytest.mark.parametrize("as_rows", [False, True])
def test_a_task_in_two_clusters_leaves_with_either(as_rows, leave_one_cluster_out=clusters.leave_one_cluster_out):
    """It is trained on in neither fold, nor assessed there: its other cluster was seen. A third trains on it."""
    tasks = {"a": "A", "b": "B", "c": "C", "ab": ["A", "B"]}
    folds = leave_one_cluster_out(rows(1, tasks) if as_rows else tasks)
    named = {fold.cluster: [{item["task"] if as_rows else item for item in part} for part in (fold.train, fold.test)]
             for fold in folds}
    assert named == {"A": [{"b", "c"}, {"a"}], "B": [{"a", "c"}, {"b"}], "C": [{"a", "b", "ab"}, {"c"}]}


def test_no_cluster_is_on_both_sides(leave_one_cluster_out=clusters.leave_one_cluster_out):
    """Over random tasks in one to three clusters: what is assessed shares none of its clusters with what is trained."""
    rng = random.Random(0)
    for _ in range(30):
        tasks = {f"pure {name}": name for name in "ABCDE"}
        tasks |= {f"task {i}": rng.sample("ABCDE", rng.randint(1, 3)) for i in range(12)}
        for fold in leave_one_cluster_out(tasks):
            trained, assessed = ({name for task in part for name in tasks[task]} for part in (fold.train, fold.test))
            assert assessed == {fold.cluster}
            assert fold.cluster not in trained
            assert set(fold.train) == {task for task in tasks if fold.cluster not in tasks[task]}


def test_a_task_whose_rows_name_two_clusters_is_in_both(leave_one_cluster_out=clusters.leave_one_cluster_out):
    """One row says A and another B: the task is in both, although no row says so."""
    data = [{"task": "x", "cluster": "A"}, {"task": "x", "cluster": "B"}, {"task": "a", "cluster": "A"},
            {"task": "b", "cluster": "B"}, {"task": "c", "cluster": "C"}]
    assert [[row["task"] for row in fold.train] for fold in leave_one_cluster_out(data)] == [
        ["b", "c"], ["a", "c"], ["x", "x", "a", "b"]]


@pytest.mark.parametrize("bad, message", [
    ({"a": "A", "b": "A"}, "two clusters"), ({}, "two clusters"), ([], "two clusters"), ({"a": "A", "b": None}, "'b'"),
    ({"a": "A", "b": []}, "'b'"), ({"a": "A", "b": ""}, "'b'"), ({"a": "A", "b": ["B", 3]}, "'b'"),
    ({"a": "A", "ab": ["A", "B"]}, "no other"), ({"a": "A", "c": "C", "ab": ["A", "B"]}, "no other"),
    ([{"task": "a", "cluster": "A"}, {"cluster": "B"}], "entry 2"),
    ([{"task": "a", "cluster": "A"}, {"task": "b"}], "entry 2"),
    ([{"task": "a", "cluster": "A", "id": 7}, {"task": "b", "cluster": "B", "id": 7}], "id 7"),
])
def test_what_cannot_be_split_is_refused(bad, message, leave_one_cluster_out=clusters.leave_one_cluster_out):
    """One cluster, none, a task in no cluster, a cluster without a task of its own, one id twice: a MiniftError."""
    with pytest.raises(MiniftError, match=message):
        leave_one_cluster_out(bad)


def test_rows_need_no_id(leave_one_cluster_out=clusters.leave_one_cluster_out):
    """Rows without an id, or with null for it, are not taken for the same row."""
    data = [{"task": "a", "cluster": "A", "id": None}, {"task": "b", "cluster": "B", "id": None},
            {"task": "a", "cluster": "A"}, {"task": "b", "cluster": "B"}]
    assert [len(fold.train) for fold in leave_one_cluster_out(data)] == [2, 2]


def test_few_clusters_are_nested(few_clusters=clusters.few_clusters):
    """n of the training clusters, the same for the same seed, each set within the next; what is assessed stays."""
    fold = clusters.leave_one_cluster_out(rows(2, {f"t{i}": f"C{i}" for i in range(9)}))[4]
    for seed in range(3):
        kept = [{row["cluster"] for row in few_clusters(fold, n, seed).train} for n in range(1, 9)]
        assert [len(names) for names in kept] == list(range(1, 9)) and all(a < b for a, b in zip(kept, kept[1:]))
        assert few_clusters(fold, 3, seed) == few_clusters(fold, 3, seed)
    assert len({str(few_clusters(fold, 1, seed).train) for seed in range(20)}) > 3
    many = clusters.leave_one_cluster_out(rows(1, {f"t{i}": f"C{i}" for i in range(40)}))[0]
    for n in range(1, 39):
        assert {r["task"] for r in few_clusters(many, n).train} < {r["task"] for r in few_clusters(many, n + 1).train}
    assert few_clusters(fold, 8) == fold and few_clusters(fold, 2).test == fold.test
    for n in (0, 9):
        with pytest.raises(MiniftError, match="8"):
            few_clusters(fold, n)


def test_of_few_clusters_a_task_needs_all_of_its_own(few_clusters=clusters.few_clusters):
    """A task in two clusters is trained on only when both were drawn."""
    tasks = {"a": "A", "b": "B", "ab": ["A", "B"], "c": "C"}
    fold = clusters.leave_one_cluster_out(rows(1, tasks))[2]
    assert {row["task"] for row in few_clusters(fold, 1).train} in ({"a"}, {"b"})
    assert {row["task"] for row in few_clusters(fold, 2).train} == {"a", "b", "ab"}


# ---- leaks ----


def test_a_clean_split_passes(check_leaks=clusters.check_leaks):
    """Rows that share only the answer, the role and common words are no leak; nor are rows without any of the keys."""
    for fold in clusters.leave_one_cluster_out(rows()):
        check_leaks(fold.train, fold.test)
    check_leaks([{}, asking(""), asking("!?", story="")], [{}, asking(""), asking("!?", story="")])


@pytest.mark.parametrize("key, value", [
    ("task", "who"), ("template", "Tell me: {q}"), ("scene", 17), ("scene", {"place": "mill", "animal": "fox"}),
    ("scene", ["mill", "fox"]), ("story", "The kite broke."), ("instruction", "What broke?"), ("prompt", "What broke?"),
])
def test_a_shared_value_is_named(key, value, check_leaks=clusters.check_leaks):
    """The same task, template, scene, story or instruction on both sides: the message names it and both rows."""
    train = [*rows(2, {"count": "numbers"}), {**asking("One thing."), "id": "train row", key: value}]
    test = [*rows(2, {"mood": "sentiment"}), {**asking("Another thing."), "id": "test row", key: value}]
    kind = key if key in ("task", "template", "scene") else "text"
    with pytest.raises(MiniftError, match=f"leak.*'test row'.*'train row'.*same {kind}"):
        check_leaks(train, test)
    check_leaks(train[:-1], test)
    other = {**value, "animal": "owl"} if isinstance(value, dict) else 18 if value == 17 else "other"
    check_leaks(train, [{**test[-1], key: other}])


@pytest.mark.parametrize("here, there", [
    (asking("What broke?"), asking("  what BROKE")), (asking("Что сломалось?"), asking("что сломалось")),
    (asking("谁来了？"), asking("谁来了")), (asking("What broke?"), {"prompt": "What broke?"}),
    (asking(f"Read this.\n{STORY}"), asking(f"{STORY.upper()}\nWho is it about?")),             # the same document
    (asking(f"Text: {STORY}"), asking(STORY + " \nSay more.")), (asking("Go on.\n" + STORY), {"story": STORY}),
    ({"messages": [{"role": "user", "content": "Write a story."}, {"role": "assistant", "content": STORY}]},
     asking(f"Sum it up.\n{STORY}")),                                                           # an inverted template
    ({"messages": [{"role": "user", "content": f"An example.\n{STORY}"}, {"role": "assistant", "content": "Sad."},
                   {"role": "user", "content": "And this?"}]}, asking(STORY)),                  # a shown example
])
def test_the_same_text_is_found(here, there, check_leaks=clusters.check_leaks):
    """Case, signs and spaces hide nothing; a long line is found wherever it stands and whoever says it; both ways."""
    for train, test in ((here, there), (there, here)):
        with pytest.raises(MiniftError, match="leak.*row 1 .*row 1 .*same text"):
            check_leaks([train], [test])


def test_short_lines_may_be_shared(check_leaks=clusters.check_leaks):
    """A line of 19 words, as of a template or a sentence, may stand in two instructions; one of 20 may not."""
    line = " ".join(f"word{i}" for i in range(clusters.PASSAGE - 1))
    check_leaks([asking(f"One.\n{line}")], [asking(f"Two.\n{line}")])
    with pytest.raises(MiniftError, match="text"):
        check_leaks([asking(f"One.\n{line} more")], [asking(f"Two.\n{line} more")])
    check_leaks([asking("हिन्दी")], [asking("ह न द")])                        # marks are letters' parts, not signs


def test_a_planted_copy_is_found_among_many(check_leaks=clusters.check_leaks):
    """The control: one row of the training side copied, with all its labels changed, into another cluster."""
    folds = clusters.leave_one_cluster_out(rows(20))
    spy = {**folds[0].train[7], "task": "new", "cluster": "lookup", "template": "new", "scene": "new", "id": "spy"}
    with pytest.raises(MiniftError, match="'spy'.*same text"):
        check_leaks(folds[0].train, [*folds[0].test, spy])


def test_leaks_are_looked_for_in_rows(check_leaks=clusters.check_leaks):
    """Folds of names hold no text, so that nothing could be found: a MiniftError, not silence."""
    fold = clusters.leave_one_cluster_out(TASKS)[0]
    with pytest.raises(MiniftError, match="rows"):
        check_leaks(fold.train, fold.test)


# ---- every fold ----


class Lab:
    """A tiny base, a tuning that moves its weights, an assessment that reads them, and a record of what each saw."""

    def __init__(self, stop_at=None):
        self.tuned, self.assessed, self.starts, self.stop_at = [], [], [], stop_at

    def make_model(self):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        self.starts.append(model.weight.detach().clone())
        return model

    def tune(self, model, data):
        if len(self.tuned) == self.stop_at:
            raise KeyboardInterrupt
        self.tuned.append([row["id"] for row in data])
        with torch.no_grad():
            model.weight += len(data) + torch.rand(2, 3)

    def assess(self, model, data):
        self.assessed.append([row["id"] for row in data])
        return {"sum": model.weight.sum().item(), "n": len(data)}

    def run(self, folds, state_path=None, run_folds=clusters.run_folds, **options):
        return run_folds(folds, self.make_model, self.tune, self.assess, state_path, progress=False, **options)


def test_every_fold_tunes_on_the_others_and_starts_from_the_base(run_folds=clusters.run_folds):
    """tune sees the training rows and nothing withheld, assess the withheld ones, and every fold the same weights."""
    lab, folds = Lab(), clusters.leave_one_cluster_out(rows())
    found = lab.run(folds, run_folds=run_folds)
    assert list(found) == ["lookup", "numbers", "sentiment"] and [found[name]["n"] for name in found] == [6, 3, 6]
    for fold, tuned, assessed in zip(folds, lab.tuned, lab.assessed):
        assert tuned == [row["id"] for row in fold.train] and assessed == [row["id"] for row in fold.test]
        assert not set(tuned) & {row["id"] for row in rows() if row["cluster"] == fold.cluster}
    assert len(lab.starts) == 3 and all(torch.equal(start, lab.starts[0]) for start in lab.starts)
    assert found["lookup"]["sum"] == pytest.approx(lab.starts[0].sum().item() + 6 * len(folds[0].train), abs=6)


def test_a_base_that_was_tuned_is_noticed(run_folds=clusters.run_folds):
    """make_model that hands out the same model again, tuned by the fold before, is a MiniftError; so is a new draw."""
    folds = clusters.leave_one_cluster_out(rows())
    lab, model = Lab(), torch.nn.Linear(3, 2)
    lab.make_model = lambda: model
    with pytest.raises(MiniftError, match="'numbers' starts from other weights"):
        lab.run(folds, run_folds=run_folds)
    assert len(lab.tuned) == 1
    lab = Lab()
    lab.make_model = lambda: torch.nn.Linear(3, 2)
    with pytest.raises(MiniftError, match="other weights"):
        lab.run(folds, run_folds=run_folds)


def test_tune_may_return_another_model(run_folds=clusters.run_folds):
    """What tune returns is assessed; None stands for the model that it was given."""
    lab, other = Lab(), torch.nn.Linear(3, 2)
    lab.tune = lambda model, data: other
    found = lab.run(clusters.leave_one_cluster_out(rows()), run_folds=run_folds)
    assert {result["sum"] for result in found.values()} == {other.weight.sum().item()}


def test_a_stopped_run_goes_on(tmp_path, run_folds=clusters.run_folds):
    """Stopped in the third fold, the second call tunes that one only, and the results are those of an unbroken run."""
    folds, state = clusters.leave_one_cluster_out(rows()), tmp_path / "state.json"
    expected = Lab().run(folds, run_folds=run_folds)
    first, second = Lab(stop_at=2), Lab()
    with pytest.raises(KeyboardInterrupt):
        first.run(folds, state, run_folds=run_folds)
    assert sorted(json.loads(state.read_text(encoding="utf-8"))["folds"]) == ["lookup", "numbers"]
    assert second.run(folds, state, run_folds=run_folds) == expected
    assert len(second.tuned) == 1 and second.assessed == [[row["id"] for row in folds[2].test]]
    third = Lab()
    assert third.run(folds, state, run_folds=run_folds) == expected and third.tuned == third.starts == []


def test_random_numbers_begin_anew_in_each_fold(run_folds=clusters.run_folds):
    """A fold's result depends on `seed` and not on the folds before; the caller's random numbers are not touched."""
    folds = clusters.leave_one_cluster_out(rows())
    found, alone = Lab().run(folds, run_folds=run_folds), Lab().run(folds[1:2], run_folds=run_folds)
    assert alone["numbers"] == found["numbers"]
    assert Lab().run(folds, seed=1, run_folds=run_folds)["numbers"] != found["numbers"]
    lab, model = Lab(), torch.nn.Linear(3, 2)
    lab.make_model = lambda: copy_of(model)
    torch.manual_seed(5)
    lab.run(folds, run_folds=run_folds)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def copy_of(model):
    with torch.random.fork_rng():
        fresh = torch.nn.Linear(3, 2)
    fresh.load_state_dict(model.state_dict())
    return fresh


def test_a_state_of_other_rows_or_another_base_is_refused(tmp_path, run_folds=clusters.run_folds):
    """Results of other data, of another base, or a file of something else are not taken for this run's."""
    folds, state = clusters.leave_one_cluster_out(rows()), tmp_path / "state.json"
    with pytest.raises(KeyboardInterrupt):
        Lab(stop_at=1).run(folds, state, run_folds=run_folds)
    with pytest.raises(MiniftError, match="'lookup' of other rows"):
        Lab().run(clusters.leave_one_cluster_out(rows(2)), state, run_folds=run_folds)
    lab, other = Lab(), torch.nn.Linear(3, 2)
    lab.make_model = lambda: copy_of(other)
    with pytest.raises(MiniftError, match="'numbers' starts from other weights"):
        lab.run(folds, state, run_folds=run_folds)
    for text in ("[]", "{}", '{"folds": 3}', "nothing"):
        state.write_text(text, encoding="utf-8")
        with pytest.raises(MiniftError, match="state.json"):
            Lab().run(folds, state, run_folds=run_folds)


def test_nothing_runs_when_any_fold_leaks(tmp_path, run_folds=clusters.run_folds):
    """A leak in the last fold stops the run before the first one; so do two folds of one cluster."""
    data = rows()
    data[-1] = {**data[-1], "scene": data[0]["scene"]}
    lab = Lab()
    with pytest.raises(MiniftError, match="leak"):
        lab.run(list(reversed(clusters.leave_one_cluster_out(data))), run_folds=run_folds)
    fold = clusters.leave_one_cluster_out(rows())[0]
    with pytest.raises(MiniftError, match="same cluster"):
        lab.run([fold, fold], run_folds=run_folds)
    assert lab.starts == lab.tuned == []


# ---- averages ----


def test_macro_and_micro(macro_micro=clusters.macro_micro):
    """{A: .9, B: [.5, .7]}: the mean of cluster means is 0.75, of all scores 0.70; lists, dicts and bare numbers."""
    for scores in ({"A": 0.9, "B": [0.5, 0.7]}, {"A": [0.9], "B": {"x": 0.5, "y": 0.7}}):
        assert macro_micro(scores) == pytest.approx({"macro": 0.75, "micro": 0.70}, abs=1e-12)
    assert macro_micro({"A": [1, 0], "B": [1, 1]}) == {"macro": 0.75, "micro": 0.75}
    for bad in ({}, {"A": []}, {"A": [1.0], "B": {}}):
        with pytest.raises(MiniftError, match="at least one score"):
            macro_micro(bad)


def test_intervals_over_seeds_by_hand(over_seeds=clusters.over_seeds):
    """Three seeds: mean -+ 4.3027 s / sqrt(3), for each cluster, the macro and the micro average; one seed has none."""
    found = over_seeds([{"A": [0.4, 0.4], "B": 0.4}, {"A": [0.3, 0.5], "B": 0.7}, {"A": [0.9, 0.9], "B": 0.9}])
    assert set(found) == {"A", "B", "macro", "micro"}
    for name, values in {"A": (0.4, 0.4, 0.9), "B": (0.4, 0.7, 0.9), "macro": (0.4, 0.55, 0.9),
                         "micro": (0.4, 0.5, 0.9)}.items():
        mean = sum(values) / 3
        half = 4.302653 * math.sqrt(sum((x - mean) ** 2 for x in values) / 2 / 3)
        assert found[name] == pytest.approx({"mean": mean, "low": mean - half, "high": mean + half}, abs=1e-4)
    assert over_seeds([{"A": 0.5}])["macro"] == {"mean": 0.5}
    for bad in ([], [{"A": 0.5}, {"B": 0.5}]):
        with pytest.raises(MiniftError, match="seeds"):
            over_seeds(bad)


def test_the_quantiles_are_student_s(T95=clusters.T95):
    """The density of t with 1 to 9 degrees, integrated numerically up to the tabulated value, gives 0.975."""
    for degrees, t in enumerate(T95, start=1):
        x = torch.linspace(0, t, 200_001, dtype=torch.float64)
        scale = math.gamma((degrees + 1) / 2) / math.gamma(degrees / 2) / math.sqrt(degrees * math.pi)
        area = torch.trapezoid(scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2), x).item()
        assert area == pytest.approx(0.475, abs=2e-6)


def test_intervals_hold_the_truth_as_often_as_they_say(over_seeds=clusters.over_seeds):
    """Of 2000 studies with five seeds each, about 95 in a hundred intervals hold the true mean; 12 seeds still do."""
    rng = random.Random(0)
    for n in (5, 12):
        hits = 0
        for _ in range(2000):
            found = over_seeds([{"A": rng.gauss(0.5, 0.1)} for _ in range(n)])["macro"]
            hits += found["low"] <= 0.5 <= found["high"]
        assert 0.935 < hits / 2000 < 0.97


# ---- ranking ----


def small_model():
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(20, 24, n_layer=2, n_head=2, d_model=16, d_ff=24, dropout=0.3))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(10)                                                   # far from uniform
    return model.train()


def by_hand(model, prompt, option):
    """log p of each token of the option, one row without padding."""
    model.eval()
    with torch.no_grad():
        ids = torch.tensor([prompt + option])
        return token_logprobs(model(ids).double(), ids)[0, len(prompt) - 1:]


@pytest.mark.parametrize("per_token", [True, False])
def test_the_likeliest_option_wins(per_token, rank_classification=clusters.rank_classification):
    """For options of unequal length, the index of the largest mean (or sum) of log p, each option scored by itself."""
    rng, model, chosen = random.Random(0), small_model(), []
    for _ in range(20):
        prompt = [rng.randrange(20) for _ in range(rng.randint(1, 6))]
        options = [[rng.randrange(20) for _ in range(rng.randint(1, 5))] for _ in range(4)]
        logprobs = [by_hand(model, prompt, option) for option in options]
        scores = [(x.mean() if per_token else x.sum()).item() for x in logprobs]
        chosen.append(rank_classification(model.train(), prompt, options, per_token))
        assert chosen[-1] == scores.index(max(scores)) and model.training
    assert len(set(chosen)) > 2


def test_the_sum_favours_short_options(rank_classification=clusters.rank_classification):
    """With a uniform model every token costs ln V: the mean ties and takes the first, the sum takes the shortest."""
    model = small_model()
    torch.nn.init.zeros_(model.head.weight)
    options = [[1, 2, 3], [4], [5, 6]]
    assert rank_classification(model, [1], options) == 0
    assert rank_classification(model, [1], options, per_token=False) == 1


def test_ranking_needs_a_prompt_and_options(rank_classification=clusters.rank_classification):
    """No prompt, no options, or an option without a token: a MiniftError; so is one that is longer than the context."""
    model = small_model()
    for prompt, options in (([], [[1]]), ([1], []), ([1], [[1], []]), ([1] * 20, [[2] * 5])):
        with pytest.raises(MiniftError):
            rank_classification(model, prompt, options)
