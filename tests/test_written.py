"""The instructions that people wrote: well formed, varied, in the world's words; what a row asks for, its answer does.

A row may carry `check`: constraints on its last answer that a program can check, such as {"words": 5}. A test that
takes `rows` can be called with other rows, to see it fail.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

from minift.evaluation.metrics import distinct_n
from minift.text.chat import check_messages, encode_chat
from minift.text.jsonl import read_jsonl
from minift.text.tokenizer import Tokenizer
from minift.world import lexicon
from minift.world.corpus import documents
from minift.world.instructions import instructions

DATA = Path(__file__).parents[1] / "data"
ROWS = read_jsonl(DATA / "instructions" / "written.jsonl", required=("messages", "task", "cluster", "source", "id"))
WORD = re.compile(r"\w+(?:[-']\w+)*")
SENTENCE_END = re.compile(r"""[.!?]+"?(?=\s+["A-Z0-9(]|$)""")
LONGEST = 250           # tokens of a row; the base's context is a little longer
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 8: "eight", 10: "ten", 12: "twelve", 20: "twenty"}


def said_words(text):
    return WORD.findall(text)


def lower_words(text):
    return WORD.findall(text.lower())


def items(text):
    """ "crab, mole, tiger" -> its words"""
    return [item.strip(" .").lower() for item in text.split(",")]


CHECKS = {              # name -> does this text keep the constraint with this value?
    "words": lambda text, n: len(said_words(text)) == n,
    "max_words": lambda text, n: len(said_words(text)) <= n,
    "sentences": lambda text, n: len(SENTENCE_END.findall(text)) == n,
    "questions": lambda text, n: text.count("?") == n,
    "lines": lambda text, n: len(text.split("\n")) == n,
    "words_each_line": lambda text, n: all(len(said_words(line)) == n for line in text.split("\n")),
    "dashes": lambda text, n: [line[:2] for line in text.split("\n")] == ["- "] * n,
    "numbered": lambda text, n: [line.split(" ")[0] for line in text.split("\n")] == [f"{i + 1}." for i in range(n)],
    "begins": lambda text, start: text.startswith(start),
    "ends": lambda text, end: text.endswith(end),
    "upper": lambda text, _: text.isupper(),
    "lower": lambda text, _: text.islower(),
    "with": lambda text, asked: set(asked) <= set(lower_words(text)),
    "without": lambda text, banned: not set(banned) & set(lower_words(text)),
    "initial": lambda text, letter: all(word[0] == letter for word in lower_words(text)),
    "sorted": lambda text, _: items(text) == sorted(items(text)) and len(items(text)) > 1,
}
KEPT_AND_BROKEN = {     # name -> (value, a text that keeps the constraint, one that does not)
    "words": (3, "The owl's nest.", "The owl slept there."), "max_words": (2, "An owl.", "One big owl."),
    "sentences": (2, 'It came. "Who?" asked Ben.', "It came, and Ben asked."), "questions": (1, "Who? He.", "He."),
    "lines": (2, "a\nb", "a b"), "words_each_line": (2, "a b\nc d", "a b\nc"), "dashes": (2, "- a\n- b", "- a\nb"),
    "numbered": (2, "1. a\n2. b", "1. a\n3. b"), "begins": ("Once", "Once a day", "A day"),
    "ends": ("day.", "A day.", "A night."), "upper": (True, "GO HOME!", "Go HOME!"), "lower": (True, "go.", "Go."),
    "with": (["owl"], "The Owl slept.", "The owlet slept."), "without": (["red"], "It was tired.", "Red it was."),
    "initial": ("b", "Ben beat Bo.", "Ben ate."), "sorted": (True, "ant, bee", "bee, ant"),
}


def of_role(row, role):
    return [message["content"] for message in row["messages"] if message["role"] == role]


def instruction(row):
    """What the user says first, as words alone: two of them are the same when only signs and capitals differ."""
    return " ".join(lower_words(of_role(row, "user")[0]))


def test_rows_are_chats_that_can_be_learned(rows=ROWS):
    """At least 400 chats that end with an answer; each has one source, and an id of its own."""
    assert len(rows) >= 400
    for row in rows:
        check_messages(row["messages"], row["id"], need_assistant=True)
        assert row["messages"][-1]["role"] == "assistant" and row["source"] == "written", row["id"]
        assert row.keys() <= {"messages", "task", "cluster", "source", "id", "check"}, row["id"]
        assert re.fullmatch(r"written-\d{4}", row["id"])
    assert len({row["id"] for row in rows}) == len(rows)


def test_roles_alternate(rows=ROWS):
    """After an optional system turn, user and assistant take turns; some rows have one, at least 50 several turns."""
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        turns = roles[roles[0] == "system":]
        assert turns == ["user", "assistant"] * (len(turns) // 2) != [], row["id"]
    assert sum(len(of_role(row, "assistant")) > 1 for row in rows) >= 50
    assert sum(bool(of_role(row, "system")) for row in rows) >= 5


def test_every_row_fits_the_base(rows=ROWS, encode_chat=encode_chat):
    """With the tokenizer of the committed base no row is longer than its context, and every answer is in the mask."""
    tokenizer = Tokenizer.load(DATA / "base")
    for row in rows:
        ids, mask = encode_chat(tokenizer, row["messages"])
        assert len(ids) <= LONGEST, (row["id"], len(ids))
        learned = tokenizer.decode(i for i, m in zip(ids, mask, strict=True) if m)
        assert learned == "".join(text + "<eos>" for text in of_role(row, "assistant")), row["id"]


def test_tasks_lie_in_one_cluster_each(rows=ROWS):
    """At least 12 clusters with 10 rows each, and 25 tasks; no task in two clusters, or no fold could be held out."""
    clusters = Counter(row["cluster"] for row in rows)
    pairs = {(row["task"], row["cluster"]) for row in rows}
    assert len(clusters) >= 12 and min(clusters.values()) >= 10
    assert len(pairs) == len({task for task, _ in pairs}) >= 25


def test_no_instruction_is_said_twice(rows=ROWS):
    """The first turns of the users differ, even without signs and capitals."""
    again = [text for text, n in Counter(map(instruction, rows)).items() if n > 1]
    assert not again


def test_instructions_come_from_no_template(rows=ROWS, distinct_n=distinct_n):
    """Pairs of words repeat far less than in as many filled templates; few instructions begin alike; and no sentence
    of five words or more is asked twice."""
    asked = [of_role(row, "user")[0] for row in rows]
    templates = [row["messages"][0]["content"] for row in instructions(len(rows), 0)]
    assert distinct_n(asked, 2) > 0.6 > 0.4 > distinct_n(templates, 2)
    begins = Counter(tuple(lower_words(text)[:3]) for text in asked)
    assert max(begins.values()) <= len(rows) / 100
    sentences = Counter(" ".join(lower_words(sentence)) for text in asked
                        for sentence in set(re.split(r"(?<=[.?!:])\s+", text)))
    assert not [sentence for sentence, n in sentences.items() if n > 1 and sentence.count(" ") >= 4]


def test_the_words_are_the_worlds(rows=ROWS):
    """Words that neither the base corpus nor the lexicon has, and that occur less than three times here, make up less
    than one word in fifty (a plural or a past form of a known word is known)."""
    known = set(lower_words(" ".join(documents(3000, 0))))
    known |= {word.lower() for name, group in vars(lexicon).items() if name.isupper() for word in group}
    known |= {word + ending for word in known for ending in ("s", "es", "ed", "ing", "'s")}
    known |= {word.removesuffix("ed") for word in known} | {word.removesuffix("s") for word in known}
    used = Counter(word for row in rows for message in row["messages"] for word in lower_words(message["content"]))
    rare = [word for word, n in used.items() if word not in known and n < 3]
    assert sum(used[word] for word in rare) < used.total() / 50, rare


def test_answers_are_tidy(rows=ROWS):
    """No answer has white space at its ends, doubled spaces, odd characters or an article that does not fit its word;
    no two short questions get one long answer."""
    for row in rows:
        for text in of_role(row, "assistant"):
            assert text == text.strip() and "  " not in text and text.isascii(), row["id"]
            assert not re.search(r"\b[Aa] [aeio]|\b[Aa]n [^aeiouh]", text), row["id"]
            assert text.count('"') % 2 == 0, row["id"]
    answers = Counter(of_role(row, "assistant")[-1] for row in rows)
    assert not [text for text, n in answers.items() if n > 1 and len(said_words(text)) > 6]


@pytest.mark.parametrize("name", CHECKS)
def test_a_check_can_fail(name):
    """Each constraint holds for a text that keeps it and fails for one that breaks it."""
    value, kept, broken = KEPT_AND_BROKEN[name]
    assert CHECKS[name](kept, value) and not CHECKS[name](broken, value)


def test_constraints_are_kept(rows=ROWS):
    """The last answer of each row with a check keeps every constraint named there; more than 100 rows have one, and
    every kind of constraint is used."""
    checked = [row for row in rows if "check" in row]
    for row in checked:
        for name, value in row["check"].items():
            assert CHECKS[name](of_role(row, "assistant")[-1], value), (row["id"], name, value)
    assert len(checked) > 100 and {name for row in checked for name in row["check"]} == CHECKS.keys()


def test_what_is_checked_was_asked_for(rows=ROWS):
    """A number of words or sentences above one stands in what was asked for, as a word or in digits."""
    for row in rows:
        asked = lower_words(" ".join(of_role(row, "user") + of_role(row, "system")))
        for name in ("words", "max_words", "sentences"):
            n = row.get("check", {}).get(name, 1)
            assert n == 1 or NUMBERS.get(n) in asked or str(n) in asked, (row["id"], name)
