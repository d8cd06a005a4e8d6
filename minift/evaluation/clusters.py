"""Leave one cluster out: tune on all clusters of tasks but one, assess on that one, and refuse leaks between the two.

Wei et al. 2021, "Finetuned Language Models Are Zero-Shot Learners" (FLAN), sections 2.2 (splits) and 2.3 (options). A
task is unseen only if no task of any of its clusters was trained on. Rows are dicts with `task` and `cluster` (a name,
or several). Left out: finding clusters by similarity; calibrating options by their probability without the prompt.
"""

import json
import math
import random
import statistics
from collections import Counter, namedtuple
from collections.abc import Mapping
from pathlib import Path

import regex
import torch

from minift.core.files import digest, read_json, write_json
from minift.core.logprobs import eval_mode, masked_mean, masked_sum, response_logprobs
from minift.core.run import tqdm
from minift.errors import MiniftError

# If two rows share a line of so many words, one was made from the other.
PASSAGE = 20
# A label such as "Text: " at the start of a line is not part of its text.
WORD, LABEL = regex.compile(r"[\p{L}\p{M}\p{N}]+"), regex.compile(r"^\s*\w+( \w+){0,2}: ")
# One cluster withheld; train, test: rows, or names of tasks.
Fold = namedtuple("Fold", "cluster train test")
# The 97.5 % quantile of Student's t, for 1 to 9 degrees of freedom; the last value serves for more.
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622)


def clusters_of_tasks(tasks):
    """task -> the set of all clusters that its rows name. tasks: rows, or {task: cluster or clusters}."""
    pairs = tasks.items() if isinstance(tasks, Mapping) else [(row.get("task"), row.get("cluster")) for row in tasks]
    found = {}
    for number, (task, clusters) in enumerate(pairs, start=1):
        names = [clusters] if isinstance(clusters, str) else list(clusters or ())
        if not isinstance(task, str) or not names or not all(
                isinstance(name, str) and name for name in names):
            raise MiniftError(
                f"entry {number}: the task is {task!r} and its cluster {clusters!r}; give each a name")
        found.setdefault(task, set()).update(names)
    return found


def leave_one_cluster_out(tasks):
    """One Fold for each cluster, in alphabetical order. tasks: rows, or {task: cluster or clusters}.

    A task in two clusters is not trained on in either fold. It is assessed in neither, because other tasks of its
    second cluster are trained on there. MiniftError for fewer than two clusters, a task without cluster, one id twice,
    or a cluster without a task of its own.
    """
    # Every row has its clusters, and an id of its own.
    clusters = clusters_of_tasks(tasks)
    items = [(task, task) for task in tasks] if isinstance(tasks, Mapping) else [(row["task"], row) for row in tasks]
    ids = Counter(
        row["id"] for _, row in items if isinstance(row, dict) and row.get("id") is not None)
    if ids and max(ids.values()) > 1:
        raise MiniftError(f"two rows have the id {max(ids, key=ids.get)!r}; give each its own")
    # One fold for each cluster.
    folds = []
    for name in sorted(set().union(*clusters.values())):
        train = [item for task, item in items if name not in clusters[task]]
        test = [item for task, item in items if clusters[task] == {name}]
        folds.append(Fold(name, train, test))
    if len(folds) < 2 or not all(fold.train and fold.test for fold in folds):
        sizes = ", ".join(
            f"{fold.cluster} {len(fold.train)}/{len(fold.test)}" for fold in folds)
        raise MiniftError(
            "leaving one cluster out needs at least two clusters, each with a task that is in no other; "
            f"got, to tune on / to assess: {sizes}")
    return folds


def few_clusters(fold, n, seed=0):
    """The same fold with n of its training clusters, drawn from the seed; a larger n includes those of a smaller n."""
    clusters = clusters_of_tasks(fold.train)
    names = sorted(set().union(*clusters.values()))
    if not 1 <= n <= len(names):
        raise MiniftError(
            f"{n} training clusters were asked for; there are {len(names)}: {', '.join(names)}")
    kept = set(random.Random(f"{fold.cluster}/{seed}").sample(names, len(names))[:n])
    return Fold(
        fold.cluster, [row for row in fold.train if clusters[row["task"]] <= kept], fold.test)


def check_leaks(train_rows, test_rows):
    """MiniftError that names the first thing on both sides: a task, a template, a scene, or a text.

    Compared, where a row has it: `task`, `template` and `scene` (names that are unique over all tasks), what the user
    says, `story`, and every line of at least PASSAGE words in any turn: a story in the answer or an example in the
    prompt is a leak as well. Case, punctuation and white space do not count.
    """
    known = {}
    for number, row in enumerate(train_rows, start=1):
        known |= dict.fromkeys(traces(row), row.get("id", number))
    for number, row in enumerate(test_rows, start=1):
        for kind, value in traces(row):
            if (kind, value) in known:
                raise MiniftError(
                    f"leak: the withheld row {row.get('id', number)!r} and the training row "
                    f"{known[kind, value]!r} have the same {kind} {value[:80]!r}; remove one of them")


def traces(row):
    """(kind, value) of everything in a row that must not be on both sides."""
    if not isinstance(row, dict):
        raise MiniftError(f"leaks are looked for in rows (dicts); got {row!r:.80}")
    # Names.
    found = []
    for kind in ("task", "template", "scene"):
        value = row.get(kind)
        if value is not None and not isinstance(value, str):
            value = json.dumps(value, sort_keys=True, default=str)
        if value is not None:
            found.append((kind, value))
    # Texts, and long lines, as words.
    said = row.get("messages") or []
    texts = ["\n".join(message["content"] for message in said if message["role"] == "user")]
    texts += [row[key] for key in ("instruction", "prompt", "story") if isinstance(row.get(key), str)]
    lines = "\n".join([*texts, *(message["content"] for message in said)]).split("\n")
    lines = [WORD.findall(LABEL.sub("", line).lower()) for line in lines]
    texts = [WORD.findall(text.lower()) for text in texts] + [line for line in lines if len(line) >= PASSAGE]
    return found + [("text", " ".join(text)) for text in texts if text]


def run_folds(folds, make_model, tune, assess, state_path=None, *, seed=0, progress=True):
    """{cluster: what assess returned}: for each fold a fresh model, tuned on its training rows, assessed on the others.

    make_model() -> model, the same weights each time: checked by their hash. tune(model, rows) -> the tuned model, or
    None if it changed the one that it got. assess(model, rows) -> a number, or a dict of them (it is kept as JSON).
    state_path: a JSON file of the finished folds, from which the next call goes on. It records rows and base, but not
    what tune does. Torch's random numbers start from `seed` in each fold: a resumed run equals an unbroken one.
    Raises MiniftError, before the first fold, for a leak in any of them or a state of other rows.
    """
    # Check every fold before the first is tuned.
    for fold in folds:
        check_leaks(fold.train, fold.test)
    hashes = {fold.cluster: digest({}, repr([fold.train, fold.test])) for fold in folds}
    if len(hashes) < len(folds):
        raise MiniftError(
            f"two of the {len(folds)} folds withhold the same cluster; run them one after another")
    state = open_state(state_path, hashes)
    for fold in tqdm(folds, desc="clusters", disable=not progress):
        if fold.cluster in state["folds"]:
            continue
        # Tune and assess one fold from the same base as the others, and save its result.
        model = make_model()
        base = digest(model.state_dict(), {})
        if state.setdefault("base", base) != base:
            raise MiniftError(
                f"the fold {fold.cluster!r} starts from other weights than the folds before it; let "
                "make_model load the same base each time, and choose a new state_path for a new base")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tuned = tune(model, list(fold.train))
            model = model if tuned is None else tuned
            result = assess(model, list(fold.test))
        state["folds"][fold.cluster] = {"rows": hashes[fold.cluster], "result": json.loads(json.dumps(result))}
        if state_path is not None:
            write_json(state_path, state)
    return {fold.cluster: state["folds"][fold.cluster]["result"] for fold in folds}


def open_state(path, hashes):
    """{"folds": {cluster: {"rows": hash, "result"}}} of an earlier run, if any; MiniftError if it had other rows."""
    state = read_json(path) if path is not None and Path(path).exists() else {"folds": {}}
    if not isinstance(state, dict) or not isinstance(state.get("folds"), dict):
        raise MiniftError(f"{path} is not the state of a run over folds; choose another file")
    for name in hashes.keys() & state["folds"].keys():
        if state["folds"][name]["rows"] != hashes[name]:
            raise MiniftError(
                f"{path} holds the fold {name!r} of other rows; delete the file to start anew")
    return state


def macro_micro(scores):
    """{"macro": the mean over clusters of their means, "micro": the mean over all scores}.

    scores: cluster -> a score, a list of them, or {task: score}. {A: .9, B: [.5, .7]} -> macro 0.75, micro 0.7.
    """
    lists, every = [], []
    for value in scores.values():
        if isinstance(value, Mapping):
            value = value.values()
        elif isinstance(value, int | float):
            value = [value]
        lists.append(list(value))
        every += lists[-1]
    if not lists or not all(lists):
        raise MiniftError(
            f"an average needs at least one score in each cluster; got {scores!r:.80}")
    means = [math.fsum(values) / len(values) for values in lists]
    return {"macro": math.fsum(means) / len(means), "micro": math.fsum(every) / len(every)}


def over_seeds(runs):
    """{cluster, "macro" or "micro": {"mean", "low", "high"}} over runs that differ only in their seed.

    runs: macro_micro's scores, one of each seed. low, high: from t_interval (a bootstrap of five seeds is too narrow).
    They show how much the seed changes a score, and nothing about other clusters.
    """
    if not runs or any(run.keys() != runs[0].keys() for run in runs):
        raise MiniftError(
            "an average over seeds needs at least one run, and the same clusters in all of them")
    rows = []
    for run in runs:
        row = {name: macro_micro({name: run[name]})["micro"] for name in run}
        rows.append(row | macro_micro(run))
    return {name: t_interval([row[name] for row in rows]) for name in rows[0]}


def t_interval(values):
    """{"mean", "low", "high"}: mean -+ t s / sqrt(n), the 95 % interval of a few values; one value has no interval."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return {"mean": mean}
    half = T95[min(n, 10) - 2] * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": mean - half, "high": mean + half}


@torch.no_grad()
def rank_classification(model, prompt_ids, options, per_token=True):
    """The index of the option that is likeliest after the prompt under the model; of equal ones the first.

    prompt_ids: list of ids. options: lists of ids (with <eos>, if the end is to count). An option's score is the
    mean of log p over its tokens; per_token=False takes the sum, which favours short options. The mean does not, but
    it favours long ones whose ends can be guessed from their beginnings.
    """
    prompt, lengths = list(prompt_ids), [len(option) for option in options]
    if not prompt or 0 in lengths or not lengths:
        raise MiniftError(
            f"ranking needs a prompt and options of at least one token; got {len(prompt)} and {lengths}")
    device = next(model.parameters()).device
    rows = [prompt + list(option) + [0] * (max(lengths) - len(option)) for option in options]
    input_ids, ends = torch.tensor(rows, device=device), len(prompt) + torch.tensor(lengths, device=device)[:, None]
    place = torch.arange(input_ids.shape[1], device=device)  # (T,)
    written = (place >= len(prompt)) & (place < ends)        # (L, T)
    with eval_mode(model):
        hidden = model.body(input_ids, place < ends)  # (L, T, D)
        logprobs = response_logprobs(hidden, model.head, input_ids, written)  # (L, T-1)
    scores = (masked_mean if per_token else masked_sum)(logprobs, written[:, 1:], dim=1).tolist()
    return scores.index(max(scores))
