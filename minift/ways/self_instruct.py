"""Way 4 of making instruction data: a language model writes it, and filters keep what is usable and new.

Wang et al. 2022, "Self-Instruct: Aligning Language Models with Self-Generated Instructions", section 2. A prompt shows
a few tasks, some written by people and some that the model wrote before. The model continues with new tasks in the same
form, with an empty line between two tasks:

    Task: What colour was the kite?             the first line of the user's turn
    Input: Ada had a red kite at the mill.      the rest of it, if there is any, as one line
    Answer: The kite was red.

Filters refuse a task that is not in the form, that a text model cannot do (a picture, a file), whose question holds its
answer, or that is too similar to an earlier one. What is left joins the pool from which later prompts are made.

Left out: a separate step for the instances, answers before inputs (for classification), fine-tuning in rounds.
"""

import random
from array import array
from collections import Counter, defaultdict
from functools import partial

import numpy as np
import regex

from minift.errors import MiniftError
from minift.evaluation.metrics import UNSPACED, common_subsequence, words
from minift.text.answers import generate_batch, make_generator
from minift.text.chat import encode_prompt

BLACKLIST = (*"image images graph graphs picture pictures file files map maps draw plot".split(), "go to")
LABELS = ("Task", "Input", "Answer")
FIELD = regex.compile(r"(?ms)^[ \t]*(Task|Input|Answer):(.*?)(?=^[ \t]*(?:Task|Input|Answer):|\Z)")


def self_instruct(
        seeds, writer, *, n, max_attempts=None, n_seed_demos=3, n_own_demos=1, threshold=0.7, whole=False,
        blacklist=BLACKLIST, checker=None, seed=0):
    """(rows, statistics): up to n new rows {"messages", "task", "cluster", "source", "id"}, and the counts below.

    seeds: rows with messages; the first user turn and the first assistant turn are used. writer(prompt) -> its
    continuation. max_attempts: the most calls of the writer, by default 10 n. n_seed_demos, n_own_demos: tasks in a
    prompt, from the seeds and from the accepted ones. threshold: a new task's ROUGE-L with each seed and each accepted
    task must be below it (as in the paper; the released code also accepts exactly 0.7). whole: compare instruction and
    input, so that an instruction may return with a new input. checker(instruction with input, answer) -> bool: is the
    answer true? statistics: attempts, candidates (accepted and rejected blocks together), accepted, acceptance_rate
    (accepted / candidates), rejected (reason -> count).
    """
    # The pool holds the texts to compare with: at first those of the seeds.
    rng, pool, seen = random.Random(f"self-instruct/{seed}"), Pool(), set()
    own, rejected, attempts = [], Counter(), 0

    def remember(task):
        pool.add(compared(task, whole))
        seen.add(normalised(user_turn(task)))
        return task

    tasks = [remember(task_of_row(row, number)) for number, row in enumerate(seeds, start=1)]
    most = 10 * n if max_attempts is None else max_attempts
    while len(own) < n and attempts < most:
        # Show the writer some tasks in a random order, and read the tasks that it adds.
        attempts += 1
        demos = rng.sample(tasks, min(n_seed_demos, len(tasks))) + rng.sample(own, min(n_own_demos, len(own)))
        prompt = prompt_of(rng.sample(demos, len(demos)))
        # Keep those that pass every filter; count the others by reason.
        for task in parse(writer(prompt)):
            reason = why_not(task, blacklist) or repeated(task, pool, seen, threshold, whole)
            if reason is None and checker is not None and not checker(user_turn(task), task[2]):
                reason = "not true"
            if reason is not None:
                rejected[reason] += 1
            elif len(own) < n:
                own.append(remember(task))
    total = len(own) + rejected.total()
    statistics = {
        "attempts": attempts, "candidates": total, "accepted": len(own),
        "acceptance_rate": len(own) / max(total, 1), "rejected": dict(rejected)}
    return [row_of(task, f"self-instruct-{seed}-{i}") for i, task in enumerate(own)], statistics


def task_of_row(row, number):
    """(instruction, input, answer) of a row, each on one line, so that no text can look like a label of the form."""
    turns = {message["role"]: message["content"] for message in reversed(row.get("messages") or [])}
    first, _, rest = turns.get("user", "").strip().partition("\n")
    task = tuple(" ".join(text.split()) for text in (first, rest, turns.get("assistant", "")))
    if not task[0] or not task[2]:
        raise MiniftError(f"seed {number}: expected messages with a user's turn and an answer; got {row!r:.80}")
    return task


def row_of(task, name):
    messages = [{"role": "user", "content": user_turn(task)}, {"role": "assistant", "content": task[2]}]
    return {"messages": messages, "task": "self-instruct", "cluster": "self-instruct", "source": "model", "id": name}


def user_turn(task):
    return "\n".join(task[:2]).rstrip()


def compared(task, whole):
    """The text that decides whether a task is new: the instruction, or with `whole` also the input."""
    return user_turn(task) if whole else task[0]


def prompt_of(demos):
    """The demonstrations in the form, and then "Task:", after which the model writes."""
    blocks = ["".join(f"{label}: {text}\n" for label, text in zip(LABELS, task) if text) for task in demos]
    return "\n".join(blocks + ["Task:"])


def parse(continuation):
    """[(instruction, input, answer)] of a text that continues after "Task:"; ("", "", "") for any other block."""
    if not isinstance(continuation, str):
        raise MiniftError(f"the writer must return a string, the text after the prompt; got {continuation!r:.80}")
    tasks = []
    for block in regex.split(r"\n\s*\n|\n(?=Task:)", "Task: " + continuation.strip().removeprefix("Task:")):
        fields = FIELD.findall(block)
        parts = {label: " ".join(text.split()) for label, text in fields}
        in_form = [label for label, _ in fields] in (["Task", "Answer"], list(LABELS))
        tasks.append(tuple(parts.get(label, "") if in_form else "" for label in LABELS))
    return tasks


def why_not(task, blacklist=BLACKLIST):
    """The reason to refuse a task for its own text, or None.

    An instruction may begin with a letter of any alphabet, and in scripts without spaces each character counts as a
    word. (The released code accepts only ASCII, and it capitalises words, which would change names.) The blacklist is
    the paper's, in English.
    """
    instruction, given, answer = task
    if not words(instruction) or not words(answer):
        return "not in the form"
    n = len(regex.sub(f"([{UNSPACED}])", r" \1 ", instruction).split())
    if n <= 3 or n > 150:
        return "too short" if n <= 3 else "too long"
    if any(regex.search(rf"\b{regex.escape(word)}\b", instruction, regex.IGNORECASE) for word in blacklist):
        return "keyword"
    if instruction.lower().startswith("write a program"):
        return "program"
    # Spanish sentences begin with ¿ and ¡.
    if not regex.match(r"[\p{L}\p{M}\p{N}¿¡]", instruction):
        return "punctuation first" if regex.match(r"\p{P}", instruction) else "symbol first"
    # The instruction must not hold the answer. The input may: then the task is to find it there.
    answer, asked = normalised(answer), f" {normalised(instruction)} "
    # A question with a choice, "red or blue", names the answer and is allowed.
    offered = f" or {answer} " in asked or f" {answer} or " in asked
    return "answer leaks" if answer == normalised(given) or (f" {answer} " in asked and not offered) else None


def repeated(task, pool, seen, threshold, whole=False):
    """The reason why a task is not new, or None. seen: normalised user turns. pool: the texts to compare with."""
    if normalised(user_turn(task)) in seen:
        return "duplicate"
    nearest = pool.nearest(compared(task, whole), threshold)
    return "not novel" if nearest >= threshold else None


def normalised(text):
    return " ".join(words(text))


class Pool:
    """Texts, and the largest ROUGE-L between a new text and any of them. It is exact, and few pairs are aligned.

    ROUGE-L = 2 LCS / (words + words), and the LCS has at most as many words as both texts share. Shared words are
    counted for all texts at once by an index: (word, how often it came before in its text) -> the texts that have it.
    This gives an upper bound for each text. The texts are aligned from the largest bound down, until no bound is
    above the best ROUGE-L found.
    """

    def __init__(self):
        self.words, self.lengths, self.index = [], array("q"), defaultdict(lambda: array("q"))

    def add(self, text):
        found = words(text)
        for key in occurrences(found):
            self.index[key].append(len(self.words))
        self.words.append(found)
        self.lengths.append(len(found))

    def nearest(self, text, at_least=0.0, skip=None):
        """The largest ROUGE-L of `text` with one of the pool, 0 if below at_least. skip: a number to leave out."""
        # Count the words that each text of the pool shares with this one.
        found, best = words(text), 0.0
        shared = np.zeros(len(self.words), dtype=np.int64)
        for key in occurrences(found):
            if key in self.index:
                shared[np.frombuffer(self.index[key], dtype=np.int64)] += 1
        # Align the texts in the order of their bounds.
        bounds = 2 * shared / np.maximum(np.array(self.lengths) + len(found), 1)
        likely = np.flatnonzero((bounds >= at_least) & (bounds > 0))
        for i in likely[np.argsort(-bounds[likely], kind="stable")]:
            if bounds[i] <= best:
                break
            if i != skip:
                best = max(best, 2 * common_subsequence(found, self.words[i]) / (len(found) + len(self.words[i])))
        return best if best >= at_least else 0.0


def occurrences(found):
    """"the cat the" -> (the, 0), (the, 1), (cat, 0): each word and how often it came before."""
    places = []
    for word, count in Counter(found).items():
        places += [(word, k) for k in range(count)]
    return places


class ModelWriter:
    """writer(prompt) -> the text that a LanguageModel writes after it. chat: put the prompt into the chat template.

    Demonstrations that do not fit are dropped, and so is a last line that was cut off. n_tokens: the tokens written.
    """

    def __init__(self, model, tokenizer, *, max_new_tokens=128, temperature=0.8, top_p=0.95, chat=False, seed=0):
        self.model, self.tokenizer, self.n_tokens = model, tokenizer, 0
        self.chat = chat
        self.generator = make_generator(model, seed)
        self.settings = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}

    def __call__(self, prompt):
        tokenizer = self.tokenizer
        encode = partial(encode_prompt, tokenizer) if self.chat else tokenizer.encode
        room = self.model.config.context_length - self.settings["max_new_tokens"]
        ids = encode(prompt)
        while len(ids) > room and "\n\n" in prompt:
            # Drop the first demonstration.
            prompt = prompt.partition("\n\n")[2]
            ids = encode(prompt)
        response, = generate_batch(self.model, tokenizer, [ids], generator=self.generator, **self.settings).responses()
        self.n_tokens += len(response)
        text = tokenizer.decode(response, skip_special=True)
        if response[-1:] == [tokenizer.eos_id]:
            return text
        # The last line was cut off.
        return text.rpartition("\n")[0]
