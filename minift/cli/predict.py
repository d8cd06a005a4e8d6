"""classify --predict: a classifier's labels for the user's texts, with the probability of each."""

import sys
from functools import partial

from minift.cli.classes import listed
from minift.cli.encoders import encode_labelled_row
from minift.cli.examples import Tally, encode_row
from minift.cli.folders import check_out_file
from minift.cli.measures import with_interval
from minift.cli.models import context_of, open_kind, pick_device
from minift.cli.rows import find_files, put_rows, read_rows
from minift.core.heads import SequenceClassifier
from minift.errors import MiniftError
from minift.evaluation.baselines import labelled_batches, predict


def label_rows(options):
    """Give every row of --predict a "label" and its "probabilities"; the rows are written to --out, or printed."""
    if options.out:
        check_out_file(options.out, options.overwrite)
    model, tokenizer = open_kind(options.model, SequenceClassifier, "classify --predict")
    rows = read_rows(find_files(options.predict), ("text",))
    tally = Tally(read=len(rows))
    encode = partial(encode_labelled_row, tokenizer=tokenizer, context=context_of(model, options.context))
    examples = [encode_row(encode, row, tally, None) for row in rows]
    # labelled_batches needs a label; predict does not use it.
    used = [{**example, "label": 0} for example in examples if example is not None]
    tally.used = len(used)
    if not used:
        raise MiniftError(f"dataset is empty: no text is left of {', '.join(options.predict)} ({tally})")
    model.to(pick_device(options.device))
    found = iter(predict(model, labelled_batches(used, tokenizer.pad_id, options.batch_size)).tolist())
    probabilities = [None if example is None else next(found) for example in examples]
    written = [labelled(row.values, model.labels, each) for row, each in zip(rows, probabilities)]
    put_rows(options.out, written)
    # Printed rows go to the standard output alone, so that they can be redirected into a file.
    file = sys.stdout if options.out else sys.stderr
    report(tally, written, model.labels, file)
    if options.out:
        print(f"written to {options.out}")


def labelled(values, labels, probabilities):
    """A row with its label and the probability of each label; None (there was no text): both are null."""
    given = {"given_label": values["label"]} if values.get("label") is not None else {}
    if probabilities is None:
        return {**values, **given, "label": None, "probabilities": None}
    best = max(range(len(labels)), key=probabilities.__getitem__)
    return {
        **values, **given, "label": labels[best],
        "probabilities": {label: round(p, 6) for label, p in zip(labels, probabilities)}}


def report(tally, rows, labels, file):
    """Print what became of the rows, and how many of the labels that they came with were found."""
    print(f"{tally}{' (the label is null)' if tally.dropped else ''}", file=file)
    known = [row for row in rows if "given_label" in row and row["label"] is not None]
    if not known:
        return
    found = with_interval("accuracy", [float(str(row["given_label"]) == row["label"]) for row in known])
    print(
        f"accuracy on the {len(known)} rows that came with a label: {found['accuracy']:.4g} "
        f"(95 %: {found['accuracy_95%']})", file=file)
    unknown = {str(row["given_label"]) for row in known} - set(labels)
    if unknown:
        print(f"of their labels the classifier does not know {listed(unknown)}", file=file)
