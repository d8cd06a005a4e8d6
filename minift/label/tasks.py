"""The three modes of the page: compare, annotate, write.

A mode is an object that has the items, shows one to a person, and turns a decision into a row. Comparing follows
Christiano et al. 2017, "Deep reinforcement learning from human preferences", section 2.2. Left out: more than two
answers at once, degrees of preference, labels that exclude or need each other.
"""

import hashlib
import json
import random

from minift.errors import MiniftError
from minift.text.chat import chat_of, check_messages


class Compare:
    """Which of two answers is better? The side of each answer is random, for each person and item."""

    mode, required = "compare", ("prompt", "chosen", "rejected", "annotator", "id")

    def __init__(self, items, seed=0):
        self.items, self.seed = by_id(items), seed

    @staticmethod
    def item(values, where):
        """A row {"prompt", "answers": [a, b]} or {"prompt", "chosen", "rejected"} as an item; None: both are equal."""
        answers = values.get("answers", [values.get("chosen"), values.get("rejected")])
        if not isinstance(answers, list) or len(answers) != 2 or not all(isinstance(text, str) for text in answers):
            raise MiniftError(
                f'{where}: expected two texts, "answers": [a, b] or "chosen" and "rejected"; got '
                f"{answers!r:.80}")
        if chat_of(values["prompt"], where)[-1]["role"] != "user":
            raise MiniftError(f"{where}: the prompt must end with a user turn, since an answer follows")
        identity = item_id(values, [values["prompt"], answers], where)
        return None if answers[0] == answers[1] else {"id": identity, "prompt": values["prompt"], "answers": answers}

    def answers(self, item, annotator):
        """The two answers as this person sees them, left first. Loading the page again does not change the sides."""
        turned = random.Random(f"order/{self.seed}/{annotator}/{item['id']}").random() < 0.5
        return item["answers"][::-1] if turned else item["answers"]

    def show(self, item, annotator):
        return {"id": item["id"], "messages": chat_of(item["prompt"]), "answers": self.answers(item, annotator)}

    def row(self, item, annotator, value):
        """(row, decided). value: "left", "right", "tie", or None to skip. "order" is what stood left and right."""
        left, right = self.answers(item, annotator)
        if value in ("tie", None):
            return {"prompt": item["prompt"], "answers": [left, right], "verdict": value or "skip"}, False
        if value not in ("left", "right"):
            raise MiniftError(f"the choice is {value!r:.40}; expected left, right, tie or nothing")
        chosen, rejected = (left, right) if value == "left" else (right, left)
        return {
            "prompt": item["prompt"], "chosen": chosen, "rejected": rejected,
            "order": ["chosen", "rejected"] if value == "left" else ["rejected", "chosen"]}, True

    def rating(self, item, row):
        """A row's decision about an item: "first" or "second" (answer of the item), "tie", or None for a skip."""
        if row.get("chosen") in item["answers"]:
            return ("first", "second")[item["answers"].index(row["chosen"])]
        return "tie" if row.get("verdict") == "tie" else None


class Annotate:
    """Which of several labels fits a text?"""

    mode, required = "annotate", ("text", "label", "annotator", "id")

    def __init__(self, items, labels):
        self.items, self.labels = by_id(items), list(labels)

    @staticmethod
    def item(values, where):
        """A row {"text"}, or {"text", "text_pair"}, as an item. A label of the row is not shown."""
        texts = {key: values[key] for key in ("text", "text_pair") if values.get(key) is not None}
        if not all(isinstance(text, str) for text in texts.values()):
            raise MiniftError(f"{where}: text and text_pair must be strings; got {texts!r:.80}")
        return {"id": item_id(values, list(texts.values()), where), **texts}

    def show(self, item, annotator):
        return item

    def row(self, item, annotator, value):
        """(row, decided). value: one of the labels, or None to skip."""
        if value is None:
            return {**item, "verdict": "skip"}, False
        if value not in self.labels:
            raise MiniftError(f"the label is {value!r:.40}; expected one of {', '.join(self.labels)}")
        return {**item, "label": value}, True

    def rating(self, item, row):
        return row.get("label")


class Write:
    """A person writes an instruction and its response, or several turns of both."""

    mode, required, items, labels = "write", ("messages",), {}, ()

    def row(self, item, annotator, value):
        """(row, True). value: {"messages", "task"}. The id is a hash of the messages, so that no row is there twice."""
        if not isinstance(value, dict) or not isinstance(value.get("task"), str) or not value["task"].strip():
            raise MiniftError("expected messages and the name of a task; fill in the task")
        messages = value.get("messages")
        check_messages(messages, "messages", need_assistant=True)
        messages = [{"role": turn["role"], "content": turn["content"].strip()} for turn in messages]
        if messages[-1]["role"] != "assistant" or not all(turn["content"] for turn in messages):
            raise MiniftError("an instruction or a response is empty; fill it in, or remove the turn")
        return {
            "messages": messages, "task": value["task"].strip(), "cluster": "written", "source": "person",
            "id": f"written-{digest(messages)}"}, True


def by_id(items):
    """id -> item, in their order; MiniftError when there is none, or when two different items have one id."""
    found = {}
    for item in items:
        if found.setdefault(item["id"], item) != item:
            raise MiniftError(f"two items have the id {item['id']!r}; give each its own")
    if not found:
        raise MiniftError("there is nothing to show: no item is left")
    return found


def item_id(values, content, where):
    """The row's own id (a string or a number), else a hash of its content, which stays when rows are added or moved."""
    identity = values.get("id", digest(content))
    if isinstance(identity, bool) or not isinstance(identity, str | int) or identity == "":
        raise MiniftError(f"{where}: 'id' must be a string or a whole number; got {identity!r:.40}")
    return str(identity)


def digest(content):
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
