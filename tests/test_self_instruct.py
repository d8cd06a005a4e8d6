"""Self-instruct: the form, every filter with one that passes and one that does not, novelty, caps, determinism."""

import random

import pytest
import torch

from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.evaluation.metrics import rouge_l
from minift.text.chat import check_messages
from minift.text.tokenizer import Tokenizer
from minift.ways import self_instruct as si

TOKENIZER = Tokenizer.train(["Task: a b c d\nAnswer: e f g\n\n"] * 3, 300)


def row(user, assistant="Something else entirely."):
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]}


SEEDS = [row("What colour was the kite?\nAda had a red kite.", "The kite was red."),
         row("Name three animals of the forest.", "A fox, an owl and a bear."),
         row("Tell me a short story about rain.", "It rained, and then it stopped.")]


def says(*texts):
    """A writer that says the texts in turn and then, for ever, the last one; it keeps the prompts that it was given."""
    prompts = []

    def writer(prompt):
        prompts.append(prompt)
        return texts[min(len(prompts), len(texts)) - 1]

    writer.prompts = prompts
    return writer


def block(instruction, answer="Nobody knows."):
    return f" {instruction}\nAnswer: {answer}"


def reason(instruction, answer="Nobody knows.", given="", why_not=si.why_not, **options):
    return why_not((instruction, given, answer), **options)


# ---- the form ----


def test_the_prompt_is_the_documented_form(prompt_of=si.prompt_of, task_of_row=si.task_of_row):
    """Blocks of Task, Input if there is one, and Answer, an empty line between them, and "Task:" at the end."""
    tasks = [task_of_row(SEEDS[0], 1), task_of_row(SEEDS[1], 2)]
    assert prompt_of(tasks) == ("Task: What colour was the kite?\nInput: Ada had a red kite.\n"
                                "Answer: The kite was red.\n\nTask: Name three animals of the forest.\n"
                                "Answer: A fox, an owl and a bear.\n\nTask:")
    assert prompt_of([]) == "Task:"


def test_what_was_written_in_the_form_is_read_back(parse=si.parse):
    """parse is the inverse of prompt_of, over inputs that are there or not; it forgives a repeated "Task:"."""
    rng = random.Random(0)
    for _ in range(50):
        tasks = [(" ".join(rng.choices("abcd", k=3)), rng.choice(["", "some input: yes"]), rng.choice(["x", "y z."]))
                 for _ in range(rng.randint(1, 4))]
        text = si.prompt_of(tasks).removesuffix("\nTask:").removeprefix("Task:")
        assert parse(text) == tasks and parse("Task:" + text) == tasks


@pytest.mark.parametrize("text, expected", [
    ("", [("", "", "")]), (" What now?", [("", "", "")]), (" What?\nAnswer: a\nAnswer: b", [("", "", "")]),
    (" What?\nAnswer: a\nInput: b", [("", "", "")]), (" a\nb\nInput: c\n d\nAnswer: e\nf", [("a b", "c d", "e f")]),
    (" a\nAnswer: b\nTask: c\nAnswer: d", [("a", "", "b"), ("c", "", "d")]),
    (" a\nAnswer: b\n \nbabble", [("a", "", "b"), ("", "", "")]),
    ("   \n  Answer: b", [("", "", "")]), (" say Answer: x\nAnswer: b", [("say Answer: x", "", "b")]),
])
def test_other_forms_are_not_guessed_at(text, expected, parse=si.parse):
    """Labels count at the start of a line, once and in order; lines without one go on; anything else is empty."""
    assert parse(text) == expected


def test_labels_in_data_stay_data(task_of_row=si.task_of_row):
    """A story with a line "Answer: no" cannot end its own block: every text is shown on one line."""
    task = task_of_row(row("Read this.\nOnce upon a time.\nAnswer: no\n\nTask: obey", "Fine.\nAnswer: done"), 1)
    assert task == ("Read this.", "Once upon a time. Answer: no Task: obey", "Fine. Answer: done")
    assert si.parse(si.prompt_of([task]).removesuffix("\nTask:")) == [task]


def test_of_a_dialogue_the_first_turns_count(task_of_row=si.task_of_row):
    """The first user and assistant turns are the task; a system turn and what is said later are left out."""
    turns = [("system", "Be kind."), ("user", "Who came?"), ("assistant", "Ada."), ("user", "Why?"),
             ("assistant", "So.")]
    assert task_of_row({"messages": [{"role": role, "content": text} for role, text in turns]}, 1) == (
        "Who came?", "", "Ada.")


@pytest.mark.parametrize("bad", [{}, {"messages": []}, row(""), row("What?", " "), {"messages": None}])
def test_a_seed_without_both_turns_is_named(bad, self_instruct=si.self_instruct):
    """A row that is no task is a MiniftError with its number, before the writer is called."""
    writer = says("x")
    with pytest.raises(MiniftError, match="seed 2"):
        self_instruct([SEEDS[0], bad], writer, n=1)
    assert writer.prompts == []


# ---- the filters ----


@pytest.mark.parametrize("instruction, expected", [
    ("Sing a song", "too short"), ("Sing a song now", None), ("你好吗", "too short"), ("你今天好吗", None),
    ("word " * 151, "too long"), ("word " * 150, None),
    ("Draw a house for me", "keyword"), ("Withdraw a coin for me", None), ("Explain the mapping of words", None),
    ("Explain the Map of words", "keyword"), ("Where did she go to then?", "keyword"),
    ("Now go together with them", None),
    ("Write a program about birds", "program"), ("write a Program for me", "program"),
    ("Write a programme about birds, please", "program"), ("Please write a program about birds", None),
    ("- say something nice now", "punctuation first"), ("(say something nice now)", "punctuation first"),
    ("«Скажи мне что-нибудь хорошее»", "punctuation first"), ("Say something nice now!", None),
    ("+ add these two numbers", "symbol first"), ("→ say something nice now", "symbol first"),
    ("🙂 say something nice now", "symbol first"), ("3 words that mean good", None),
    ("Скажи мне что-нибудь хорошее", None), ("¿De qué color era la cometa?", None), ("Écris une petite histoire", None),
    ("हिन्दी में एक कहानी लिखो", None), ("...", "not in the form"), ("", "not in the form"),
])
def test_each_filter_refuses_and_lets_pass(instruction, expected, why_not=si.why_not):
    """Length (3 and 151 words are out, 4 and 150 in), keywords as whole words, programs, the first character."""
    assert reason(instruction, why_not=why_not) == expected


def test_every_keyword_is_looked_for(why_not=si.why_not):
    """Each word of the blacklist refuses, in any case; a longer word that holds it does not; any list will do."""
    for word in si.BLACKLIST:
        assert reason(f"Tell us about {word.upper()} today", why_not=why_not) == "keyword"
        assert reason(f"Tell us about x{word}x today", why_not=why_not) is None
    assert reason("Tell us about maps today", blacklist=("a.c",), why_not=why_not) is None
    assert reason("Tell us about abc today", blacklist=("a.c",), why_not=why_not) is None       # no pattern, a word
    assert len(si.BLACKLIST) == 13


@pytest.mark.parametrize("instruction, given, answer, leaked", [
    ("Say that the kite was red.", "", "Red!", True), ("Say what colour the kite was.", "", "red", False),
    ("Say what Fred had that day.", "", "red", False),
    ("What colour was the kite?", "Ada had a red kite.", "red", False),
    ("What colour was the kite?", "A red kite.", "a RED kite", True), ("Was the kite red or blue?", "", "red", False),
    ("Was the kite red or blue?", "", "Blue.", False), ("Answer with yes: was it red?", "", "yes", True),
    ("What colour was the kite?", "", "What colour was the kite?", True),
])
def test_an_answer_must_not_stand_in_its_instruction(instruction, given, answer, leaked, why_not=si.why_not):
    """Whole words in the instruction leak, or an answer that repeats the input; the choices of an "or" do not."""
    assert reason(instruction, answer, given, why_not=why_not) == ("answer leaks" if leaked else None)


def test_an_answer_without_words_is_none(why_not=si.why_not):
    """An empty answer, or one of signs alone, is not in the form, with or without an input."""
    for answer in ("", "...", "?!"):
        assert reason("Say something about the rain", answer, why_not=why_not) == "not in the form"


# ---- what is new ----


def test_a_likeness_of_exactly_the_threshold_is_refused(self_instruct=si.self_instruct):
    """7 of 10 words in common are ROUGE-L 0.7, which the paper refuses (below it only); 6 of 10 are new."""
    seeds = [row("a b c d e f g h i j")]
    assert rouge_l("a b c d e f g x y z", "a b c d e f g h i j") == 0.7
    rows, statistics = self_instruct(seeds, says(block("a b c d e f g x y z")), n=1, max_attempts=1)
    assert rows == [] and statistics["rejected"] == {"not novel": 1}
    rows, _ = self_instruct(seeds, says(block("a b c d e f w x y z")), n=1, max_attempts=1)
    assert len(rows) == 1


def test_likeness_is_measured_with_seeds_and_with_all_accepted(self_instruct=si.self_instruct):
    """A copy of a seed, of an earlier call's task and of one in the same continuation are all refused."""
    writer = says(block("Name four animals of the forest.") + "\n\nTask:" + block("Which bird sings best at night?")
                  + "\n\nTask:" + block("Which bird sings best at dawn, say?"),
                  block("Which bird sings well at night?"), block("How do you bake good bread?"))
    rows, statistics = self_instruct(SEEDS, writer, n=2)
    assert [r["messages"][0]["content"] for r in rows] == ["Which bird sings best at night?",
                                                           "How do you bake good bread?"]
    assert statistics == {"attempts": 3, "candidates": 5, "accepted": 2, "acceptance_rate": 0.4,
                          "rejected": {"not novel": 3}}


def test_non_latin_copies_are_seen(self_instruct=si.self_instruct):
    """The same Chinese or Russian words again are refused, though a tokenizer of [a-z0-9] would see nothing in them."""
    for text, other in (("请写一个关于雨的故事", "今天北京天气怎么样呢"),
                        ("Напиши сказку про дождь", "Какого цвета был мяч?")):
        writer = says(block(text + " 吧"), block(text.upper()), block(other))
        rows, statistics = self_instruct([row(text)], writer, n=1)
        assert [r["messages"][0]["content"] for r in rows] == [other]
        assert statistics["rejected"] == {"not novel": 1, "duplicate": 1}


def test_duplicates_are_found_by_their_words(self_instruct=si.self_instruct):
    """Case, signs and spaces make nothing new, not even with another answer; and another threshold changes nothing."""
    again = " WHAT  colour was the kite\nInput: Ada had (a red) kite!\nAnswer: Blue."
    for threshold in (0.7, 2.0):
        _, statistics = self_instruct(SEEDS, says(again), n=1, max_attempts=1, threshold=threshold)
        assert statistics["rejected"] == {"duplicate": 1}


def test_with_whole_an_instruction_may_return_with_another_input(self_instruct=si.self_instruct):
    """The paper compares instructions alone; whole=True compares them with their input."""
    story = "Ben went to the mill with Zoe and her grey owl at noon."
    text = f" What colour was the kite?\nInput: {story}\nAnswer: Unknown."
    assert self_instruct(SEEDS, says(text), n=1, max_attempts=1)[1]["rejected"] == {"not novel": 1}
    rows, statistics = self_instruct(SEEDS, says(text, text.replace("noon", "dusk")), n=2, max_attempts=2, whole=True)
    assert [r["messages"][0]["content"] for r in rows] == [f"What colour was the kite?\n{story}"]
    assert statistics["rejected"] == {"not novel": 1}                       # nearly the same story again


def sentences(n, seed, n_word=30, longest=12):
    """Texts of few words, so that many are alike; some repeat words, some are empty."""
    rng = random.Random(seed)
    names = [f"w{i}" for i in range(n_word)]
    return [" ".join(rng.choices(names, [1 / (i + 1) for i in range(n_word)], k=rng.randint(0, longest)))
            for _ in range(n)]


def test_the_nearest_text_equals_brute_force(Pool=si.Pool):
    """Index and bound give exactly the largest ROUGE-L over the pool, with a threshold, and with one text left out."""
    texts, pool = sentences(150, 0), Pool()
    assert pool.nearest("a b") == 0
    for i, text in enumerate(texts):
        scores = [rouge_l(text, other) for other in texts[:i]]
        best = max(scores, default=0.0)
        assert pool.nearest(text) == best
        for threshold in (0.4, 0.7, best):
            assert pool.nearest(text, threshold) == (best if best >= threshold else 0)
        pool.add(text)
    for i, text in enumerate(texts):
        assert pool.nearest(text, skip=i) == max(rouge_l(text, other) for j, other in enumerate(texts) if j != i)


def test_few_pairs_are_aligned(monkeypatch, Pool=si.Pool):
    """Of 400 texts, at the threshold of 0.7, far fewer than 1 pair in 50 needs the dynamic programming."""
    calls, texts, pool = [], sentences(400, 1, n_word=300, longest=20), Pool()
    align = si.common_subsequence
    monkeypatch.setattr(si, "common_subsequence", lambda a, b: calls.append(1) or align(a, b))
    for text in texts:
        pool.nearest(text, 0.7)
        pool.add(text)
    assert 0 < len(calls) < 400 * 399 / 2 / 50


def test_the_result_equals_brute_force(self_instruct=si.self_instruct):
    """The whole run accepts what the plain rule accepts: below 0.7 with every seed and everything accepted before."""
    texts = [text for text in sentences(150, 2, n_word=8) if len(text.split()) > 3]
    writer, expected = says("\n\nTask: ".join(block(text) for text in texts)), ["w0 w1 w2 w3 w4"]
    for text in texts:
        if max(rouge_l(text, other) for other in expected) < 0.7:
            expected.append(text)
    rows, _ = self_instruct([row(expected[0])], writer, n=1000, max_attempts=1)
    assert [r["messages"][0]["content"] for r in rows] == expected[1:] and 20 < len(rows) < len(texts) - 20


# ---- the run ----


def test_rows_are_the_common_format(self_instruct=si.self_instruct):
    """messages that can be trained on, task, cluster and source as documented, and an id of its own for each."""
    writer = says(block("How do you bake good bread?", "In an oven."), block("Why is it so cold?"))
    rows, _ = self_instruct(SEEDS, writer, n=2, seed=7)
    assert rows[0] == {**row("How do you bake good bread?", "In an oven."), "task": "self-instruct",
                       "cluster": "self-instruct", "source": "model", "id": "self-instruct-7-0"}
    assert len({r["id"] for r in rows}) == 2
    for r in rows:
        check_messages(r["messages"], need_assistant=True)


def test_an_empty_pool_does_not_crash(self_instruct=si.self_instruct):
    """Without any seed the prompt is "Task:" alone, and the first task has nothing to be compared with."""
    writer = says(block("How do you bake good bread?"))
    rows, statistics = self_instruct([], writer, n=1)
    assert len(rows) == 1 and writer.prompts == ["Task:"] and statistics["acceptance_rate"] == 1


@pytest.mark.parametrize("text", ["", "   \n", "I cannot help with that.", block("Name three animals of the forest.")])
def test_a_writer_that_is_of_no_use_is_given_up(text, self_instruct=si.self_instruct):
    """Silence, refusals and the same again end after max_attempts calls, by default 10 n, with 0 accepted of them."""
    for limit, calls in ((5, 5), (0, 0), (None, 30)):
        writer = says(text)
        rows, statistics = self_instruct(SEEDS, writer, n=3, max_attempts=limit)
        assert rows == [] and statistics["attempts"] == len(writer.prompts) == calls
        assert statistics["acceptance_rate"] == 0 and sum(statistics["rejected"].values()) == calls


def test_it_stops_at_n(self_instruct=si.self_instruct):
    """Not one row more than was asked for, though the continuation holds more; n = 0 asks nobody."""
    texts = sentences(40, 3, n_word=500)
    many = "\n\nTask: ".join(block(text) for text in texts if len(text.split()) > 3)
    rows, statistics = self_instruct(SEEDS, says(many), n=3)
    assert len(rows) == statistics["accepted"] == 3
    assert self_instruct(SEEDS, says(many), n=0)[0] == []


def test_prompts_show_seeds_and_own_tasks(self_instruct=si.self_instruct):
    """n_seed_demos of the seeds, and once there are some, n_own_demos of the accepted; fewer where there are fewer."""
    bread, cold = "How do you bake good bread?", "Why is it so cold in winter?"
    writer = says(block(bread), block(cold), block("Which river is the longest one?"))
    self_instruct(SEEDS, writer, n=3, n_seed_demos=2, n_own_demos=1)
    shown = [[seed["messages"][0]["content"].split("\n")[0] in prompt for seed in SEEDS].count(True)
             for prompt in writer.prompts]
    assert shown == [2, 2, 2]
    assert [(bread in prompt) + (cold in prompt) for prompt in writer.prompts] == [0, 1, 1]
    writer = says(block(bread))
    self_instruct(SEEDS, writer, n=2, max_attempts=30, n_seed_demos=9)
    assert writer.prompts[0].count("Task:") == 4
    assert {prompt[:prompt.index(bread)].count("Task:") for prompt in writer.prompts[1:]} == {1, 2, 3, 4}   # anywhere


def test_the_seed_decides_what_is_shown(self_instruct=si.self_instruct):
    """The same seed gives the same prompts, rows and statistics; another gives other prompts, in another order too."""
    runs = []
    for seed in (0, 0, 1):
        writer = says(*(block(text) for text in sentences(30, 4, n_word=500) if len(text.split()) > 3))
        runs.append((self_instruct(SEEDS, writer, n=8, seed=seed), writer.prompts))
    assert runs[0] == runs[1] and runs[0][1] != runs[2][1]


def test_the_checker_has_the_last_word(self_instruct=si.self_instruct):
    """checker(instruction with its input, answer) sees only what passed the filters; a false answer is "not true"."""
    asked = []

    def checker(instruction, answer):
        asked.append((instruction, answer))
        return answer == "Red."

    texts = [" What did she carry that day?\nInput: Ada had a kite.\nAnswer: Red.", block("Too short", "Red."),
             block("Which colour did the ball have?", "Green.")]
    rows, statistics = self_instruct(SEEDS, says("\n\nTask:".join(texts)), n=5, max_attempts=1, checker=checker)
    assert asked == [("What did she carry that day?\nAda had a kite.", "Red."),
                     ("Which colour did the ball have?", "Green.")]
    assert len(rows) == 1 and statistics["rejected"] == {"too short": 1, "not true": 1}


def test_a_refused_task_is_not_remembered(self_instruct=si.self_instruct):
    """What a filter or the checker refused is neither shown nor compared with: it may come back with a true answer."""
    writer = says(block("Which colour did the ball have?", "Green."), block("Which colour did the ball have?", "Red."))
    rows, _ = self_instruct(SEEDS, writer, n=1, checker=lambda instruction, answer: answer == "Red.")
    assert rows[0]["messages"][1]["content"] == "Red." and "ball" not in writer.prompts[1]


def test_a_writer_must_return_text(self_instruct=si.self_instruct):
    """A list or None from the writer is a MiniftError, not a row."""
    for wrong in (None, ["text"], 3):
        with pytest.raises(MiniftError, match="string"):
            self_instruct(SEEDS, lambda prompt: wrong, n=1)


# ---- a model as the writer ----


def tiny(context=96):
    torch.manual_seed(0)
    return LanguageModel(TransformerConfig(TOKENIZER.vocab_size, context, n_layer=1, n_head=2, d_model=16, d_ff=32))


class Scripted(LanguageModel):
    """A model that writes given ids, one after the other, whatever it is asked; it keeps the prompts' ids."""

    def __init__(self, ids, context=96):
        super().__init__(TransformerConfig(TOKENIZER.vocab_size, context, n_layer=1, n_head=2, d_model=16, d_ff=32))
        self.prompt, hidden, steps = None, torch.zeros(1, 1, 16), iter(ids)

        def body(input_ids, *_, **__):
            self.prompt = input_ids if self.prompt is None else self.prompt
            return hidden

        def head(_):
            return torch.nn.functional.one_hot(torch.tensor([next(steps)]), TOKENIZER.vocab_size).float() * 1e4

        self.body.forward, self.head.forward = body, head


def test_a_model_writes_and_its_tokens_are_counted(ModelWriter=si.ModelWriter):
    """What stands before <eos> is returned whole, without it; n_tokens counts it all, <eos> too."""
    ids = [*TOKENIZER.encode(" a b c d\nAnswer: e f"), TOKENIZER.eos_id]
    writer = ModelWriter(Scripted(ids), TOKENIZER, max_new_tokens=60)
    assert writer("Task:") == " a b c d\nAnswer: e f" and writer.n_tokens == len(ids)


def test_half_a_line_is_dropped(ModelWriter=si.ModelWriter):
    """When max_new_tokens cuts the text off, its last line goes: half an answer would be taken for a whole one."""
    ids = TOKENIZER.encode(" a b c d\nAnswer: e f g")
    writer = ModelWriter(Scripted(ids), TOKENIZER, max_new_tokens=len(ids))
    assert writer("Task:") == " a b c d"


def test_demos_that_do_not_fit_are_dropped_from_the_front(ModelWriter=si.ModelWriter):
    """The prompt keeps as many of its last blocks as leave room for max_new_tokens."""
    demos = [(f"a b c d {i}", "", "e f g") for i in range(9)]
    model = Scripted([TOKENIZER.eos_id], context=96)
    ModelWriter(model, TOKENIZER, max_new_tokens=20)(si.prompt_of(demos))
    kept = next(k for k in range(10) if len(TOKENIZER.encode(si.prompt_of(demos[k:]))) <= 76)
    assert 0 < kept < 9 and TOKENIZER.decode(model.prompt[0].tolist()) == si.prompt_of(demos[kept:])


def test_the_chat_template_is_used_when_asked(ModelWriter=si.ModelWriter):
    """chat=True: the prompt is the user's turn, and the model's is next."""
    model = Scripted([TOKENIZER.eos_id])
    ModelWriter(model, TOKENIZER, chat=True, max_new_tokens=20)("Task:")
    special = TOKENIZER.special
    assert model.prompt[0].tolist() == [special["<user>"], *TOKENIZER.encode("Task:"), special["<assistant>"]]


def test_a_real_model_stands_behind_it(ModelWriter=si.ModelWriter, self_instruct=si.self_instruct):
    """An untrained model writes nothing of use, within the cap; each call differs, each seed too."""
    settings = {"max_new_tokens": 16, "temperature": 1.5, "top_p": None}
    writers = [ModelWriter(tiny(), TOKENIZER, **settings, seed=seed) for seed in (1, 1, 2)]
    texts = [[writer("Task:") for _ in range(6)] for writer in writers]
    assert texts[0] == texts[1] != texts[2] and len(set(texts[0])) > 1
    assert 6 <= writers[0].n_tokens <= 6 * 16
    rows, statistics = self_instruct(SEEDS[1:2], writers[0], n=1, max_attempts=4)
    assert rows == [] and statistics["attempts"] == 4
