"""The classes of a classifier: names in the user's files, numbers in the model, and the confusion matrix in words.

Left out: several labels for one text.
"""

import warnings
from collections import Counter

from minift.errors import MiniftError

# Classes of a confusion matrix that is printed; a larger one stands in run.json.
SHOWN = 12


def class_names(data, held_out):
    """The names of the classes in the training rows, in order; each example's label, a name, becomes its number.

    held_out: the validation rows are a part of --data; those with a label that no training row has go back to training.
    Raises MiniftError for a single class, and for a new label in --valid. Prints which labels are rare or missing.
    """
    if held_out:
        take_back(data)
    counts = Counter(example["label"] for example in data.train)
    if len(counts) < 2:
        raise MiniftError(
            f"all {len(data.train)} training rows have the label {listed(counts)}; a classifier needs at "
            "least 2 labels to choose from")
    rare = [name for name, n in counts.items() if n == 1]
    if rare:
        warnings.warn(f"labels with a single training row, from which little can be learned: {listed(rare)}",
                      stacklevel=2)
    labels = in_order(counts)
    missing = [name for name in labels if data.valid and name not in {example["label"] for example in data.valid}]
    if missing:
        print(f"note: no validation row has the label {listed(missing)}, so nothing is measured there")
    number_labels(data.train, labels, "the training rows have")
    number_labels(data.valid, labels, "the training rows have")
    return labels


def take_back(data):
    """Move validation rows whose label no training row has to the training."""
    known = {example["label"] for example in data.train}
    back = [example for example in data.valid if example["label"] not in known]
    if not back:
        return
    data.train += back
    data.valid = [example for example in data.valid if example["label"] in known]
    data.valid_from = f"a tenth of --data, held out: {len(data.valid)} rows"
    print(
        f"of these, {len(back)} went back to training, where no other row has their label: "
        f"{listed({example['label'] for example in back})}")


def number_labels(examples, labels, whose):
    """Exchange the name of each example's label for its place in `labels`; MiniftError with the line of a new one."""
    place = {name: i for i, name in enumerate(labels)}
    for example in examples:
        if example["label"] not in place:
            raise MiniftError(f"{example['where']}: the label {example['label']!r} is new; {whose} {listed(labels)}")
        example["label"] = place[example["label"]]


def in_order(names):
    """Sorted; by value when all are whole numbers, so that 10 comes after 9."""
    if all(name.removeprefix("-").isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def listed(names):
    """Some names in words: 'a', 'b', 'c' and 7 more."""
    names = in_order(names)
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def confusion_table(counts, labels):
    """The lines of a confusion matrix, a list of lists: a row for the right label, a column for the predicted one."""
    if len(labels) > SHOWN:
        return [f"confusion matrix: {len(labels)} classes, too many to print; run.json has it"]
    names = [name if len(name) <= 16 else name[:15] + "…" for name in labels]
    first = max(map(len, names))
    widths = [max(len(name), len(str(max(column)))) for name, column in zip(names, zip(*counts))]
    rows = [("", *names)] + [(name, *row) for name, row in zip(names, counts)]
    return ["confusion matrix (row: the right label; column: the predicted one)"] + [
        "  " + "  ".join([f"{row[0]:<{first}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths))])
        for row in rows]
