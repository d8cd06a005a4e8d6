"""A mode and its record together, for the server's threads: what each person has decided, and their next item.

Left out: items for some annotators only; changing an earlier decision without undoing all later ones.
"""

import math
import threading
from datetime import datetime, timezone

from minift.errors import MiniftError

# In characters.
LONGEST_NAME = 40


class Work:
    """A mode and its record, for several people at once: every method may be called from any thread."""

    def __init__(self, task, record, guidelines="", annotators=()):
        self.task, self.record, self.guidelines, self.annotators = task, record, guidelines, list(annotators)
        self.lock = threading.Lock()

    def setup(self):
        """What the page needs to know once."""
        return {
            "mode": self.task.mode, "labels": list(getattr(self.task, "labels", ())), "guidelines": self.guidelines,
            "annotators": self.annotators}

    def state(self, annotator):
        """How many items a person has done, and the next one; None when all are done or there is none to show.

        {"annotator", "done", "total", "item", "last": the id of the last decision, which undo needs}
        """
        name, items = self.checked(annotator), self.task.items
        mine = self.mine(name)
        done = {identity_of(row) for row, _ in mine}
        item = next((item for item in items.values() if item["id"] not in done), None)
        return {
            "annotator": name, "done": len(mine), "total": len(items) or None,
            "item": None if item is None else self.task.show(item, name),
            "last": identity_of(mine[-1][0]) if mine else None}

    def answer(self, annotator, identity, value, seconds):
        """Record a person's decision and return the next state. An item that was decided before is not changed."""
        name, now = self.checked(annotator), datetime.now(timezone.utc).isoformat(timespec="microseconds")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
            raise MiniftError(f"seconds is {seconds!r:.40}; expected a number of at least 0")
        item = self.task.items.get(identity) if isinstance(identity, str) else None
        if self.task.items and item is None:
            raise MiniftError(f"there is no item {identity!r:.40} here; load the page again")
        row, decided = self.task.row(item, name, value)
        row = {**row, "annotator": name, "seconds": round(seconds, 2), "time": now, "id": row.get("id", identity)}
        with self.lock:
            others = self.mine(name) if self.task.items else self.record.entries
            if not any(identity_of(other) == row["id"] for other, _ in others):
                self.record.add(row, decided)
        return self.state(name)

    def undo(self, annotator, last):
        """Undo a person's last decision if its id is `last`; so a request that is sent twice undoes only one.

        Returns the next state; "undone" in it is the row, or None.
        """
        name = self.checked(annotator)
        with self.lock:
            mine = self.mine(name)
            undone = bool(mine) and identity_of(mine[-1][0]) == last
            if undone:
                self.record.remove(mine[-1])
        return {**self.state(name), "undone": mine[-1][0] if undone else None}

    def mine(self, name):
        """A person's entries about the present items; the file may also hold an earlier round."""
        items = self.task.items
        return [entry for entry in self.record.of(name) if not items or identity_of(entry[0]) in items]

    def checked(self, name):
        """The name without spaces around it. MiniftError for none, one too long, or one that is not in the list."""
        name = " ".join(name.split()) if isinstance(name, str) else ""
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            raise MiniftError(f"expected an annotator's name of 1 to {LONGEST_NAME} letters")
        if self.annotators and name not in self.annotators:
            raise MiniftError(f"{name} is not among the annotators: {', '.join(self.annotators)}")
        return name

    def ratings(self):
        """(names, ids, ratings): ratings are annotators x items, None where there is no decision."""
        said = {}
        for row, _ in self.record.entries:
            item = self.task.items.get(identity_of(row))
            if item and isinstance(row.get("annotator"), str):
                said.setdefault(row["annotator"], {})[item["id"]] = self.task.rating(item, row)
        names = self.annotators or sorted(said)
        return names, list(self.task.items), [[said.get(name, {}).get(i) for i in self.task.items] for name in names]


def identity_of(row):
    """A row's id as a string, whoever wrote the row."""
    return str(row.get("id"))
