"""Reinforcement learning with verifiable rewards: GRPO learns tasks that the model was never tuned on.

The base is tuned on all clusters of the world's tasks but one. Then GRPO trains it on rows of that one; the reward is
exact match. Measured on held-out rows: exact match, pass@k before and after, and how often a prompt is solved that
the tuned model never solved in `samples` tries. Yue et al. 2025, "Does Reinforcement Learning Really Incentivize
Reasoning Capacity in LLMs Beyond the Base Model?" asks the same of large models. The control has random rewards. Left
out: other checkers, other learning rates.
"""

import copy
from collections import Counter, defaultdict

import torch

from minift import show
from minift.core.files import DATA
from minift.core.logprobs import make_reference
from minift.evaluation.clusters import leave_one_cluster_out
from minift.evaluation.metrics import exact_match
from minift.evaluation.verifiable import exact_reward, pass_at_k
from minift.formats.checkpoint import load_model
from minift.methods.grpo import GRPOConfig, train_grpo
from minift.methods.sft import tune_on_chats
from minift.studies import mean_and_std, show_spread
from minift.studies.cluster_study import assess, world_chats
from minift.text.answers import sample_answers
from minift.text.chat import encode_prompt

SETTINGS = {
    "seeds": (0, 1, 2), "rows": 720, "train_rows": 2400, "sft_steps": 90, "sft_lr": 5e-4, "iterations": 80,
    "prompts": 16, "group_size": 8, "lr": 3e-4, "minibatch_size": 128, "max_new_tokens": 12, "samples": 64,
    "sampled_prompts": 60, "watch_every": 10}
QUICK = {
    "seeds": (0, 1), "rows": 90, "train_rows": 180, "sft_steps": 3, "iterations": 2, "samples": 4,
    "sampled_prompts": 6, "watch_every": 1}
# Name of a run -> the cluster that is withheld and then learned, and its rewards.
RUNS = {
    "lookup": ("lookup", "exact"),
    "counting": ("counting", "exact"),
    "lookup, random rewards": ("lookup", "random")}


def measure(cells, settings):
    """{"samples", "runs": name of a run -> what `run_seed` found for each seed}."""
    runs = {
        name: [cells(f"{name}-{seed}", run_seed, *run, seed, settings) for seed in settings["seeds"]]
        for name, run in RUNS.items()}
    return {"samples": settings["samples"], "runs": runs}


def run_seed(cluster, rewards, seed, settings):
    """One run of SFT and GRPO. Returns {"before", "after", "curve", "groups"}, measured on held-out rows."""
    # Tune on all clusters but one.
    model, tokenizer = load_model(DATA / "base")
    torch.manual_seed(seed)
    tune_on_chats(
        model, tokenizer, withhold(cluster, settings["rows"], seed).train, steps=settings["sft_steps"],
        lr=settings["sft_lr"], seed=seed, progress=False)
    model.eval()
    test, train = rows_to_learn(cluster, settings["rows"], settings["train_rows"], seed)

    # Train, and watch exact match on the held-out rows.
    groups = Groups(tokenizer, train, settings["group_size"], rewards, seed)
    found = {"before": examine(model, tokenizer, test, settings), "curve": []}

    def watch(row):
        if row["iteration"] % settings["watch_every"] == 0:
            exact = mean_of(assess(model, tokenizer, test)["exact_match"])
            kept = {key: row[key] for key in ("score", "equal_groups", "kl", "entropy", "eos_share")}
            found["curve"].append({"iteration": row["iteration"], "exact": exact, **kept})

    config = GRPOConfig(
        group_size=settings["group_size"], lr=settings["lr"], minibatch_size=settings["minibatch_size"],
        max_new_tokens=settings["max_new_tokens"])
    train_grpo(
        model, make_reference(copy.deepcopy(model)), groups.reward, groups.prompts, config,
        iterations=settings["iterations"], batch_size=settings["prompts"] * settings["group_size"],
        eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, seed=seed, on_iteration=watch, progress=False)
    return found | {
        "after": examine(model, tokenizer, test, settings), "groups": groups.shares(),
        "guess": guess_the_commonest(train, test)}


def withhold(cluster, n, seed):
    """The Fold of n chats about the world in which `cluster` is withheld."""
    folds = leave_one_cluster_out(world_chats(n, seed))
    return next(fold for fold in folds if fold.cluster == cluster)


def rows_to_learn(cluster, n, n_train, seed):
    """(held-out rows, rows to learn from) of a withheld cluster: none of the second is one of the first."""
    test = withhold(cluster, n, seed).test
    held_out = {row["messages"][0]["content"] for row in test}
    rows = [row for row in world_chats(n_train, seed + 1000) if row["cluster"] == cluster]
    return test, [row for row in rows if row["messages"][0]["content"] not in held_out]


def guess_the_commonest(train, test):
    """task -> exact match on the held-out rows of always giving the commonest answer of the training rows."""
    answers, found = defaultdict(Counter), defaultdict(list)
    for row in train:
        answers[row["task"]][row["messages"][1]["content"]] += 1
    for row in test:
        guess = answers[row["task"]].most_common(1)[0][0]
        found[row["task"]].append(float(row["messages"][1]["content"] == guess))
    return {task: sum(hits) / len(hits) for task, hits in found.items()}


class Groups:
    """The prompts of some rows, their reward, and a count for each task: are groups all right, all wrong, or mixed?"""

    def __init__(self, tokenizer, rows, group_size, rewards="exact", seed=0):
        self.group_size, self.counts = group_size, defaultdict(lambda: {"wrong": 0, "mixed": 0, "right": 0})
        self.tasks, truths = {}, defaultdict(set)
        for row in rows:
            prompt = tuple(encode_prompt(tokenizer, row["messages"][0]["content"]))
            truths[prompt].add(row["messages"][1]["content"])
            self.tasks[prompt] = row["task"]
        self.prompts = [list(prompt) for prompt in truths]
        self.check = exact_reward(tokenizer, truths)
        self.generator = torch.Generator().manual_seed(seed) if rewards == "random" else None

    def reward(self, generation):
        """The exact reward, or with rewards="random" the throw of a coin; the counts are always of the exact one."""
        scores = self.check(generation)
        groups = scores.view(-1, self.group_size).sum(1).tolist()
        for prompt, right in zip(generation.prompts()[::self.group_size], groups):
            kind = {0: "wrong", self.group_size: "right"}.get(right, "mixed")
            self.counts[self.tasks[tuple(prompt)]][kind] += 1
        if self.generator is None:
            return scores
        return torch.randint(2, scores.shape, generator=self.generator).to(scores)

    def shares(self):
        """task -> the shares of its groups that were all wrong, mixed and all right."""
        return {
            task: {kind: n / sum(counts.values()) for kind, n in counts.items()}
            for task, counts in self.counts.items()}


def examine(model, tokenizer, rows, settings):
    """{"exact": task -> greedy exact match, "right": task -> for some prompts, how many of the samples were right}."""
    exact = assess(model, tokenizer, rows)["exact_match"]
    # The rows stand in the order of their tasks' turns, so that the first ones hold every task.
    right = defaultdict(list)
    for row in rows[:settings["sampled_prompts"]]:
        prompt, truth = (row["messages"][i]["content"] for i in (0, 1))
        answers = sample_answers(
            model, tokenizer, [prompt] * settings["samples"], max_new_tokens=settings["max_new_tokens"])
        hits = [answer.ended and exact_match([answer.text], [truth]) for answer in answers]
        right[row["task"]].append(int(sum(hits)))
    return {"exact": exact, "right": dict(right)}


# ---- results ----


def mean_of(by_task):
    return sum(by_task.values()) / len(by_task)


def pass_curve(examined, n):
    """k -> pass@k, the mean over tasks of the mean over prompts; k: powers of 2 up to n, the number of samples."""
    curve, k = {}, 1
    while k <= n:
        tasks = {}
        for task, counts in examined["right"].items():
            tasks[task] = sum(pass_at_k(n, right, k) for right in counts) / len(counts)
        curve[k] = mean_of(tasks)
        k *= 2
    return curve


def never_solved(run, tasks):
    """Prompts of some tasks without a right sample before: (their number, of how many, how many have one after)."""
    pairs = []
    for task in tasks:
        pairs += zip(run["before"]["right"][task], run["after"]["right"][task], strict=True)
    later = [after > 0 for before, after in pairs if before == 0]
    return len(later), len(pairs), sum(later)


def tables(results):
    """Exact match and pass@k of each run; each task: what it had to learn from, and what became of it."""
    n, runs, tasks = results["samples"], [], []
    for name, seeds in results["runs"].items():
        row = {"run": name}
        row |= before_and_after("exact", seeds, lambda one: mean_of(one["exact"]))
        for k in (1, n):
            row |= before_and_after(f"pass@{k}", seeds, lambda one, k=k: pass_curve(one, n)[k])
        row["exact, commonest answer"] = show_spread([mean_of(one["guess"]) for one in seeds])
        row["never solved before"], row["solved after"] = counts_of(seeds, list(seeds[0]["before"]["right"]))
        runs.append(row)
        if RUNS[name][1] == "exact":
            tasks += [{"run": name, "task": task, **task_row(seeds, task)} for task in seeds[0]["before"]["exact"]]
    return {
        f"Exact match and pass@k on held-out rows, mean ± standard deviation over seeds; never solved: no right "
        f"answer in {n} samples": runs,
        "Each task, and the groups of its prompts in training": tasks}


def before_and_after(name, seeds, measure_of):
    return {f"{name}, {when}": show_spread([measure_of(one[when]) for one in seeds]) for when in ("before", "after")}


def counts_of(seeds, tasks):
    """Over all seeds: "41 of 180" prompts were never solved before, and "12 of 41" of these were solved after."""
    found = [never_solved(one, tasks) for one in seeds]
    never, prompts, later = (sum(column) for column in zip(*found, strict=True))
    return f"{never} of {prompts}", f"{later} of {never}"


def task_row(seeds, task):
    """A row of the second table: exact match, the share of groups by kind, prompts never solved."""
    row = before_and_after("exact", seeds, lambda one: one["exact"][task])
    row["exact, commonest answer"] = show_spread([one["guess"][task] for one in seeds])
    for kind in ("wrong", "mixed", "right"):
        shares = [one["groups"].get(task, {}).get(kind, 0.0) for one in seeds]
        row[f"groups all {kind}".replace("all mixed", "mixed")] = show_spread(shares)
    row["never solved before"], row["solved after"] = counts_of(seeds, [task])
    return row


def draw(results):
    """Left: exact match while GRPO trains. Middle: pass@k before and after. Right: the tasks of lookup."""
    fig, (left, middle, right) = show.figure(1, 3, width=15, height=4.6)
    runs, n = results["runs"], results["samples"]
    series = {}
    for name, seeds in runs.items():
        series[name] = band(seeds[0]["curve"], [[point["exact"] for point in one["curve"]] for one in seeds])
    show.curves(left, series, xlabel="iterations", ylabel="exact match", title="held-out rows while GRPO trains")
    series = {}
    for name in ("lookup", "counting"):
        for when in ("before", "after"):
            curves = [pass_curve(one[when], n) for one in runs[name]]
            ks = list(curves[0])
            means = [mean_and_std([curve[k] for curve in curves])["mean"] for k in ks]
            series[f"{name}, {when}"] = (ks, means)
    show.curves(middle, series, xlabel="k (log axis)", ylabel="pass@k", title=f"a right one among k answers, of {n}")
    middle.set_xscale("log", base=2)
    tasks = list(runs["lookup"][0]["before"]["exact"])
    series = {}
    for when in ("before", "after"):
        found = [mean_and_std([one[when]["exact"][task] for one in runs["lookup"]]) for task in tasks]
        series[when] = ([one["mean"] for one in found], [one["std"] for one in found])
    names = [task.replace("_", " ") for task in tasks]
    show.grouped_bars(right, names, series, xlabel="exact match", title="the tasks of lookup")
    return fig


def band(points, values):
    """(iterations, mean, lowest, highest) over seeds, for show.curves. values: a list for each seed."""
    columns = list(zip(*values, strict=True))
    means = [sum(column) / len(column) for column in columns]
    return [point["iteration"] for point in points], means, list(map(min, columns)), list(map(max, columns))
