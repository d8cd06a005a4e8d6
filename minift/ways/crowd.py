"""Way 3 of making instruction data, simulated: a crowd labels items by guidelines, and its labels are adjudicated.

A label can be wrong for two reasons. A slip is the error of one annotator, on any item. A misreading is shared: some
items are pitfalls (a negation, a late turn), and annotators whose guidelines have no rule for them often make the same
error. The sizes of both are assumptions, written down below; everything else follows from them by computation. Left
out: annotators who learn or tire.
"""

import random

from minift.errors import MiniftError
from minift.ways import annotation

# Minutes for one label, as data/guidelines.md plans.
MINUTES = 0.25
# The share of the items that are pitfalls.
PITFALLS = 0.15
# Guidelines -> the share of the pitfalls that each annotator misreads.
MISREAD = {"vague": 0.6, "clear": 0.1}
# An annotator who mostly chooses the first option.
HASTY = [[0.95, 0.05], [0.6, 0.4]]
# How the annotators slip: rows are the right label, columns the label that is given.
PEOPLE = (*(annotation.noisy(accuracy, 2) for accuracy in (0.92, 0.86, 0.9, 0.7)), HASTY)
TASKS = (
    "ended_well", "is_animal", "is_colour", "somebody_speaks", "animal_or", "colour_or", "place_or", "mood",
    # The tasks with two options.
    "first_event", "first_named")


def options(row):
    """The two answers from which an annotator chooses, in their order."""
    fields = row["fields"]
    if "one" in fields:
        return fields["one"], fields["two"]
    return ("happy", "sad") if row["task"] == "mood" else ("yes", "no")


def rate(truth, guidelines, n_annotators, seed=0):
    """Ratings (annotators x items) by the first n_annotators of PEOPLE. truth: the right option of each item, 0 or 1.

    guidelines: "vague" or "clear". Raises MiniftError for others, and for more people than there are.
    """
    if guidelines not in MISREAD or not 1 <= n_annotators <= len(PEOPLE):
        raise MiniftError(
            f"expected guidelines {' or '.join(MISREAD)} and 1 to {len(PEOPLE)} annotators; got "
            f"{guidelines!r:.40} and {n_annotators}")
    rng = random.Random(f"pitfalls/{seed}")
    pitfalls, ratings = [rng.random() < PITFALLS for _ in truth], []
    for a, slips in enumerate(PEOPLE[:n_annotators]):
        misread = random.Random(f"misread/{a}/{seed}")
        understood = [
            1 - right if pitfall and misread.random() < MISREAD[guidelines] else right
            for right, pitfall in zip(truth, pitfalls)]
        ratings += annotation.simulate(understood, (0, 1), [slips], f"slips/{a}/{seed}")
    return ratings


def adjudicate(ratings, how="dawid-skene"):
    """The label, 0 or 1, to keep for each item: the majority's, or that of Dawid and Skene's model."""
    if len(ratings) == 1:
        return list(ratings[0])
    if how == "majority":
        return [0 if label is None else label for label in annotation.majority(ratings)]
    posteriors, _, labels = annotation.dawid_skene(ratings)
    return [labels[i] for i in posteriors.argmax(1)]


def labelled_rows(rows, seed, guidelines="clear", n_annotators=3):
    """(rows, label_error): the rows with the crowd's "answer" in place of the true one; the share of wrong answers.

    rows: of the world's tasks that TASKS names, with the true answer in row["fields"]["answer"].
    """
    truth = [options(row).index(row["fields"]["answer"]) for row in rows]
    kept = adjudicate(rate(truth, guidelines, n_annotators, seed))
    rows = [{**row, "fields": {**row["fields"], "answer": options(row)[label]}} for row, label in zip(rows, kept)]
    return rows, sum(a != b for a, b in zip(truth, kept)) / len(rows)


def what_it_buys(n=1000, seeds=(0, 1, 2), sizes=(1, 3, 5)):
    """Rows {"guidelines", "annotators", "minutes", "alpha", "majority", "dawid_skene"}: means over seeds.

    minutes: of all annotators, for one item. alpha: Krippendorff's, None for one annotator. majority, dawid_skene: the
    share of wrong labels after adjudication.
    """
    rows = []
    for guidelines in MISREAD:
        for size in sizes:
            found = [measure(n, seed, guidelines, size) for seed in seeds]
            means = {
                name: None if found[0][name] is None else sum(one[name] for one in found) / len(found)
                for name in found[0]}
            rows.append({"guidelines": guidelines, "annotators": size, "minutes": size * MINUTES, **means})
    return rows


def measure(n, seed, guidelines, size):
    """alpha, and the errors after adjudication, of n items; half of them have each label."""
    truth = [i % 2 for i in range(n)]
    ratings = rate(truth, guidelines, size, seed)
    error = {
        how: sum(a != b for a, b in zip(truth, adjudicate(ratings, how))) / n
        for how in ("majority", "dawid-skene")}
    return {
        "alpha": annotation.krippendorff_alpha(ratings) if size > 1 else None, "majority": error["majority"],
        "dawid_skene": error["dawid-skene"]}
