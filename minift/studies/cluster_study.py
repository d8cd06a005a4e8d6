"""Judging an instruction-tuned model: leave one cluster of tasks out, tune on 1, 2, 4 or all of the others, assess.

Wei et al. 2021, "Finetuned Language Models Are Zero-Shot Learners" (FLAN): figures 5 (withheld clusters, base against
tuned) and 6 (number of training clusters). Every model is tuned for the same number of steps, so that more clusters
mean more kinds of tasks, but not more training. Left out: prompts with examples, models of several sizes.
"""

import random
from collections import defaultdict
from pathlib import Path

from minift import show
from minift.core.files import DATA, check_data_folder, read_json, write_json
from minift.errors import MiniftError
from minift.evaluation import clusters
from minift.evaluation.metrics import exact_match, rouge_l
from minift.methods.sft import tune_on_chats
from minift.show import report
from minift.studies import keep_templates
from minift.text.answers import sample_answers
from minift.text.chat import encode_answer, encode_prompt
from minift.ways.templates import instantiate, read_templates
from minift.world.tasks import TASKS, world_rows

TEMPLATES = DATA / "instructions" / "templates.json"
METRICS = {"exact_match": "exact match, and it stops", "rouge_l": "ROUGE-L", "rank": "rank classification"}
# Rows in each step of tuning.
BATCH_SIZE = 8
# The largest number of options in a rank classification: the right answer and others of the same task.
N_OPTIONS = 4


def world_chats(n, seed):
    """n chats of all the world's tasks, which take turns, through templates whose response is the answer alone.

    Templates that want the answer in a fixed phrase ("I pick ...") are left out: a model that was not tuned on the
    phrase cannot know it.
    """
    check_data_folder("chats about the world")
    plain = keep_templates(read_templates(TEMPLATES), TASKS, lambda one: one["response"] == "{answer}")
    rows = instantiate(world_rows(n, seed), plain, seed=seed, inverted=False)
    return [{**row, "template": f"{row['task']}/{row['template']}", "scene": row["id"]} for row in rows]


def assess(model, tokenizer, rows):
    """metric -> task -> score of the greedy answers to some chats (user, assistant).

    exact_match: the answer equals the right one and ends with <eos>. rouge_l: for tasks with many good answers. rank:
    the right answer has a higher log-probability per token than answers to other rows of its task. rank_chance: the
    same for a random guess. ends_with_eos: the share of answers that end with <eos>.
    """
    tasks = defaultdict(list)
    for row in rows:
        tasks[row["task"]].append(row)
    found = defaultdict(dict)
    for task, part in tasks.items():
        for metric, value in assess_task(model, tokenizer, part).items():
            found[metric][task] = value
    return dict(found)


def assess_task(model, tokenizer, rows):
    """metric -> mean over the rows of one task."""
    prompts, right = ([row["messages"][i]["content"] for row in rows] for i in (0, 1))
    # Leave room for the longest right answer and a few tokens more, as far as the longest prompt allows.
    context = model.config.context_length
    longest_answer = max(len(tokenizer.encode(text)) for text in right)
    longest_prompt = max(len(encode_prompt(tokenizer, prompt)) for prompt in prompts)
    room = min(longest_answer + 8, context - longest_prompt)
    answers = sample_answers(model, tokenizer, prompts, max_new_tokens=room, temperature=0.0)
    # Score each answer; rank the right answer among the options that fit.
    found = defaultdict(list)
    for answer, options in zip(answers, options_of(right), strict=True):
        exact = exact_match([answer.text], options[:1])
        found["exact_match"].append(exact if answer.ended else 0.0)
        found["rouge_l"].append(rouge_l(answer.text, options[0]))
        found["ends_with_eos"].append(float(answer.ended))
        ids = [encode_answer(tokenizer, option) for option in options]
        ids = [option for option in ids if len(answer.prompt_ids) + len(option) <= context]
        if len(ids) > 1:
            found["rank"].append(float(clusters.rank_classification(model, answer.prompt_ids, ids) == 0))
            found["rank_chance"].append(1 / len(ids))
    return {metric: sum(values) / len(values) for metric, values in found.items()}


def options_of(right):
    """Yield the options for each answer to a task: the answer, and up to N_OPTIONS - 1 others, drawn with its index."""
    for number, answer in enumerate(right):
        others = sorted(set(right) - {answer})
        yield [answer, *random.Random(number).sample(others, min(N_OPTIONS - 1, len(others)))]


def run(out, open_base, make_rows, *, numbers, seeds, settings, command=""):
    """Run all folds for each seed and each number of training clusters (0: the base itself).

    Folds that are finished in `out` are not run again. open_base() -> (model, tokenizer), the same each time.
    make_rows(seed) -> chats with `messages`, `task`, `cluster`. settings: the keyword arguments of `tune_on_chats`,
    without the seed. Writes out/results.json and out/clusters.png. Returns the results: under "numbers", number ->
    metric -> what clusters.over_seeds returns. Raises MiniftError if the folds in `out` have other settings.
    """
    out = Path(out)
    check_settings(out / "settings.json", settings)
    runs = defaultdict(list)
    for seed in seeds:
        rows = make_rows(seed)
        for n in numbers:
            print(f"seed {seed}: {column(str(n))}", flush=True)
            runs[str(n)].append(run_folds(out / "folds" / f"{seed}-{n}.json", open_base, rows, seed, n, settings))
    results = {
        "command": command, **settings, "seeds": list(seeds),
        "numbers": {n: summary(found) for n, found in runs.items()}}
    write_json(out / "results.json", results)
    draw(out / "clusters.png", results)
    return results


def run_folds(state_path, open_base, rows, seed, n, settings, progress=True):
    """{cluster: metric -> task -> score} for one seed and number of training clusters."""
    folds = clusters.leave_one_cluster_out(rows)
    if n not in (0, "all"):
        folds = [clusters.few_clusters(fold, n, seed) for fold in folds]
    tokenizer = open_base()[1]

    def tune_fold(model, train_rows):
        if n:
            tune_on_chats(model, tokenizer, train_rows, seed=seed, **settings)

    return clusters.run_folds(
        folds, lambda: open_base()[0], tune_fold,
        lambda model, test_rows: assess(model.eval(), tokenizer, test_rows), state_path,
        seed=seed, progress=progress)


def check_settings(path, settings):
    """Write the settings to a file; MiniftError if the file is there and has other settings."""
    if path.exists() and (old := read_json(path)) != settings:
        name = next(key for key in settings if old.get(key) != settings[key])
        raise MiniftError(
            f"{path.parent} holds folds that were tuned with {name} {old.get(name)}, not "
            f"{settings[name]}; choose another --out")
    write_json(path, settings)


def summary(runs):
    """metric -> {cluster, "macro", "micro": mean and interval over the seeds}. runs: a result of run_folds per seed."""
    found = {}
    for metric in (*METRICS, "ends_with_eos", "rank_chance"):
        scores = [{name: fold[metric] for name, fold in one.items() if metric in fold} for one in runs]
        found[metric] = clusters.over_seeds(scores)
    return found


def table(results, metric="exact_match"):
    """A row for each withheld cluster, and the averages; a column for each number of training clusters."""
    numbers = results["numbers"]
    return [
        {"withheld": name, **{column(n): show_interval(found[metric][name]) for n, found in numbers.items()}}
        for name in next(iter(numbers.values()))[metric]]


def column(n):
    return {"0": "base", "1": "1 cluster"}.get(n, f"{n} clusters")


def show_interval(entry):
    text = f"{entry['mean']:.2f}"
    return f"{text} ({entry['low']:.2f} to {entry['high']:.2f})" if "low" in entry else text


def print_tables(results):
    for metric, name in METRICS.items():
        rows = table(results, metric)
        print(f"\n{name}\n{report.table_text(rows, list(rows[0]))}")


def draw(path, results):
    """Draw the score on each withheld cluster, and their mean, against the number of training clusters."""
    fig, axes = show.figure(1, len(METRICS), width=5.2 * len(METRICS), height=5)
    numbers = results["numbers"]
    places = list(range(len(numbers)))
    for axis, (metric, name) in zip(axes, METRICS.items()):
        found = [numbers[n][metric] for n in numbers]
        series = {
            cluster: (places, [entry[cluster]["mean"] for entry in found])
            for cluster in found[0] if cluster not in ("macro", "micro")}
        macro = [entry["macro"] for entry in found]
        ends = ([one.get(key, one["mean"]) for one in macro] for key in ("mean", "low", "high"))
        series["mean over clusters"] = (places, *ends)
        show.curves(axis, series, xlabel="clusters tuned on", ylabel="score on the withheld cluster", title=name)
        axis.set_xticks(places, ["base" if n == "0" else n for n in numbers])
        axis.set_ylim(-0.03, 1.03)
        axis.lines[-1].set(color="black", linewidth=3, linestyle="-")
    show.share_legend(fig, axes, columns=6)
    show.save(fig, path)
