"""From the user's rows to training and validation examples: encode, drop what teaches nothing, split, and count it.

Every training verb goes through `load`; only `encode` differs. Left out: mixing files by weights.
"""

import random
from collections import Counter
from dataclasses import dataclass, field

from minift.cli.rows import Row, find_files, read_rows, sha256
from minift.errors import MiniftError

# With fewer different prompts or texts, a tenth of them would be too few to validate on.
ENOUGH_TO_SPLIT = 20
# Forms whose rows may contradict each other: the same text with another label.
LABELLED = ("label", "judged")


@dataclass
class Tally:
    """What became of some rows: how many were read and used, and counts of what was dropped or noted, by reason."""

    read: int = 0
    used: int = 0
    dropped: Counter = field(default_factory=Counter)
    noted: Counter = field(default_factory=Counter)

    def __str__(self):
        parts = [f"{self.read} rows, {self.used} used"]
        parts += [f"{n} dropped: {reason}" for reason, n in self.dropped.items()]
        return "; ".join(parts + [f"{n} {remark}" for remark, n in self.noted.items()])


@dataclass
class Data:
    """Examples to learn from and to validate on, and where they came from."""

    train: list
    # Empty: nothing to keep the best on.
    valid: list
    # What the validation is on, in words.
    valid_from: str
    # "data" and, where it has files of its own, "valid" -> Tally.
    tallies: dict
    # Path -> sha256.
    files: dict


def load(options, encode, forms):
    """Read --data and --valid -> Data. encode(row, tally) -> an example, or None after counting why not.

    Without --valid a seeded tenth of --data is held out. A file that is in both counts as --valid only. Raises
    MiniftError for the first bad row (with --skip-bad: counts it), and when nothing is left.
    """
    # Find the files; one that is in both --data and --valid counts as --valid.
    valid_files = find_files(options.valid or [])
    held = {path.resolve() for path in valid_files}
    files = [path for path in find_files(options.data) if path.resolve() not in held]
    if not files:
        raise MiniftError("every file of --data is in --valid too; give --valid a file of its own")
    # Encode the training rows, then read the validation rows or hold some out.
    tallies = {"data": Tally()}
    pairs = encode_rows(files, encode, forms, options, tallies["data"])
    if valid_files:
        tallies["valid"] = Tally()
        valid = encode_rows(valid_files, encode, forms, options, tallies["valid"])
        note_leaks(pairs, valid, tallies["valid"])
        valid_from = "the files of --valid"
    else:
        pairs, valid = hold_out(pairs, options.seed)
        valid_from = f"a tenth of --data, held out: {len(valid)} rows" if valid else (
            f"nothing (--data has fewer than {ENOUGH_TO_SPLIT} different prompts or texts): the last weights are kept")
    # Say what became of the rows.
    for name, tally in tallies.items():
        print(f"{name}: {tally}")
    print(f"validation on {valid_from}", flush=True)
    return Data(
        [example for _, example in pairs], [example for _, example in valid], valid_from, tallies,
        {path.as_posix(): sha256(path) for path in files + valid_files})


def encode_rows(files, encode, forms, options, tally):
    """[(row, example)] of some files; raises MiniftError with the counts when none is left."""
    bad = [] if options.skip_bad else None
    rows = read_rows(files, forms, bad)
    tally.read = len(rows) + len(bad or ())
    pairs = []
    for row in without_duplicates(rows, tally, options.drop_duplicates):
        example = encode_row(encode, row, tally, bad)
        pairs += [] if example is None else [(row, example)]
    if bad:
        tally.dropped[f"errors, the first is {bad[0]}"] = len(bad)
    tally.used = len(pairs)
    if not pairs:
        raise MiniftError(f"dataset is empty: nothing is left of {', '.join(map(str, files))} ({tally})")
    return pairs


def encode_row(encode, row, tally, bad):
    """encode(row, tally). An error names the row's file and line; it is added to the list `bad`, if there is one."""
    try:
        return encode(row, tally)
    except MiniftError as error:
        message = str(error) if str(error).startswith(row.where) else f"{row.where}: {error}"
        if bad is None:
            raise MiniftError(message) from error
        bad.append(message)
        return None


def without_duplicates(rows, tally, drop):
    """Count rows that repeat an earlier one, or contradict it; leave them out when `drop`."""
    seen, kept = set(), []
    for row in rows:
        remark = None
        if row.key() in seen:
            remark = "the same as an earlier row"
        elif row.form == "pair" and swapped(row).key() in seen:
            remark = "an earlier pair the other way round"
        elif row.form in LABELLED and unlabelled(row).key() in seen:
            remark = "an earlier text with another label"
        seen |= {row.key(), unlabelled(row).key()} if row.form in LABELLED else {row.key()}
        if remark:
            (tally.dropped if drop else tally.noted)[remark] += 1
        if not (remark and drop):
            kept.append(row)
    return kept


def swapped(row):
    return Row(row.where, row.form, row.values | {"chosen": row.values["rejected"], "rejected": row.values["chosen"]})


def unlabelled(row):
    return Row(row.where, row.form, row.values | {"label": None})


def note_leaks(train, valid, tally):
    """Count validation rows that are trained on."""
    known = {row.key() for row, _ in train}
    leaked = sum(row.key() in known for row, _ in valid)
    if leaked:
        tally.noted["also in --data, so that the validation is too kind"] = leaked


def hold_out(pairs, seed):
    """[(row, example)] -> (train, valid): a seeded tenth of the prompts or texts, all rows of each; none if too few."""
    sources = list(dict.fromkeys(row.source() for row, _ in pairs))
    if len(sources) < ENOUGH_TO_SPLIT:
        return pairs, []
    held = set(random.Random(f"hold-out/{seed}").sample(sources, len(sources) // 10))
    return (
        [pair for pair in pairs if pair[0].source() not in held],
        [pair for pair in pairs if pair[0].source() in held])
