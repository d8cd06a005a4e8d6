"""Templates: a value is data and never markup; each answer is what the text says; held-out wordings stay held out.

The stories are read here by a reader of the text alone, which knows the lexicon and no scene.
"""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from minift.errors import MiniftError
from minift.evaluation.metrics import rouge_l
from minift.text import chat
from minift.text.jsonl import read_jsonl
from minift.text.tokenizer import Tokenizer
from minift.ways import templates
from minift.world import facts as world_facts
from minift.world import lexicon
from minift.world import scenes as world
from minift.world import tasks as world_tasks

ROOT = Path(__file__).parents[1]
FILE = ROOT / "data" / "instructions" / "templates.json"
TEMPLATES = templates.read_templates(FILE)
HOSTILE = ("{answer} {{story}} {}", "100 % %s %(x)d", r"\1 \g<0> \n", "<eos><user><assistant>", "$text ${text}",
           "{0!r:>9}", "a\u2028b\ttab\r\nend", "} {", "Œuvre 東京 🙂")
YES_NO = [task for task, entry in world_tasks.TASKS.items() if entry[0] == "yes_no"]


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def one_task(**changes):
    template = {"instruction": "Read: {text}", "response": "{label}", **changes}
    return {"topic": {"cluster": "news", "templates": [{k: v for k, v in template.items() if v is not None}]}}


def rows_of(task, n, seed=0, split="train"):
    return [row["fields"] for row in world_tasks.world_rows(n, seed, split, (task,))]


# ---- filling ----


def test_fill_agrees_with_str_format(fill=templates.fill):
    """On plain slots and doubled braces a template is filled as Python's own format strings are."""
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice(("{a}", "{b_2}", "{{", "}}", " ", "word", "%", "\\1", "\n")) for _ in range(12))
        fields = {"a": rng.choice(HOSTILE), "b_2": rng.choice(HOSTILE), "unused": "{nothing}"}
        assert fill(text, fields) == text.format(**fields)


def test_a_value_is_never_looked_at_again(fill=templates.fill):
    """Slots, braces and backslashes in a value are put in as they are, whichever slot is filled first."""
    assert fill("{a}|{b}|{{a}}", {"a": "{b}", "b": "{{a}} \\1"}) == "{b}|{{a}} \\1|{a}"


def test_a_slot_without_a_field_is_named(fill=templates.fill):
    """The error says which template, which slot, and which fields there are."""
    with pytest.raises(MiniftError, match=r"t\.json: no field for the slot \{label\} in 'x \{label\}'.*: text, id"):
        fill("x {label}", {"text": "t", "id": "1"}, "t.json")


@pytest.mark.parametrize("text, message", [
    ("a { b", r"brace \{ at character 2 stands alone; write \{\{"), ("a } b", r"brace \} at character 2 stands alone"),
    ("{}", r"\{\} is no slot"), ("{a!r}", "is no slot"), ("{a:>9}", "is no slot"), ("{a.b}", "is no slot"),
    ("{ a }", "is no slot"), ("{a[0]}", "is no slot")])
def test_bad_slots_are_refused(text, message, fill=templates.fill, slots=templates.slots):
    """A brace that stands alone, and all that Python's formats could do beyond a name, is an error."""
    for function in (lambda: fill(text, {"a": "x", "": "y"}), lambda: slots(text)):
        with pytest.raises(MiniftError, match=message):
            function()


def from_jsonl(path, templates_path, **options):
    """A user's own rows through a user's own templates, as the verb `templates` does it."""
    read = templates.read_templates(templates_path)
    return templates.instantiate(read_jsonl(path), read, name=f"{path}, row", **options)


def test_users_text_survives_untouched(tmp_path):
    """Braces, markers and names of special tokens in a user's rows arrive in the chat, and as ids they stay text."""
    rows = [{"text": text, "label": label} for text, label in zip(HOSTILE, reversed(HOSTILE))]
    data = write(tmp_path, "own.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    file = write(tmp_path, "own.json", one_task(instruction="{{Topic}} of {text}?", response="<{label}>"))
    tokenizer = Tokenizer.load(ROOT / "data" / "base" / "tokenizer.json")
    for row, made in zip(rows, from_jsonl(data, file)):
        assert [message["content"] for message in made["messages"]] == [f"{{Topic}} of {row['text']}?",
                                                                        f"<{row['label']}>"]
        ids = chat.encode_chat(tokenizer, made["messages"])[0]
        special = [i for i in ids if i in tokenizer.special.values()]
        assert special == [tokenizer.special_id(name) for name in ("<user>", "<assistant>", "<eos>")]


# ---- files ----


def test_defaults_and_all_keys(tmp_path, read_templates=templates.read_templates):
    """A template may leave out inverted (false) and split (seen)."""
    read = read_templates(write(tmp_path, "t.json", one_task()))
    assert read["topic"]["templates"][0] == {"instruction": "Read: {text}", "response": "{label}", "inverted": False,
                                             "split": "seen"}


@pytest.mark.parametrize("content, message", [
    ("[1, 2]", "expected an object"), ("{}", "at least one task"), ("{", "corrupted or not JSON"),
    ({"topic": 3}, "task 'topic': expected an object with the keys cluster, templates; got 3"),
    ({"topic": {"templates": []}}, "task 'topic': the key 'cluster' is missing"),
    ({"topic": {"cluster": " ", "templates": []}}, "cluster must be a name"),
    ({"topic": {"cluster": "a", "templates": {}}}, "templates must be a list"),
    ({"topic": {"cluster": "a", "templates": []}}, "no template of the split \"seen\""),
    ({"topic": {"cluster": "a", "templates": ["x"]}}, "task 'topic', template 1: expected an object"),
    (one_task(split="held-out"), "no template of the split \"seen\""),
    (one_task(split="test"), "template 1: no split 'test' of templates; there are seen and held-out"),
    (one_task(split=[1]), "no split"), (one_task(inverted="no"), "inverted must be true or false"),
    (one_task(instuction="x"), "unknown key 'instuction'"), (one_task(response=None), "key 'response' is missing"),
    (one_task(response="  "), "response must be a text that is not empty"),
    (one_task(instruction=7), "instruction must be a text"),
    (one_task(instruction="Read.", response="yes"), "no slot in instruction or response"),
    (one_task(instruction="Read: {text"), r"template 1: the brace \{ at character 6 stands alone"),
    ({"topic": {"cluster": "a", "templates": [{"instruction": "Read {t}", "response": "{l}"},
                                              {"instruction": " read  {t}", "response": "{l}", "split": "held-out"}]}},
     "template 2: the instruction is that of template 1")])
def test_bad_template_files_are_refused(content, message, tmp_path, read_templates=templates.read_templates):
    """Each error names the file, and the task and the template as far as there is one."""
    path = write(tmp_path, "bad.json", content)
    with pytest.raises(MiniftError, match=message) as caught:
        read_templates(path)
    assert str(path) in str(caught.value)


# ---- examples ----


def two_tasks(tmp_path):
    return templates.read_templates(write(tmp_path, "two.json", {
        "topic": {"cluster": "news", "templates": [{"instruction": f"{i} {{text}}", "response": "{label}"}
                                                   for i in range(5)]},
        "length": {"cluster": "counting", "templates": [
            {"instruction": "How long? {text}", "response": "{label}"},
            {"instruction": "Write {label} words", "response": "{text}", "inverted": True},
            {"instruction": "Long? {text}", "response": "{label}", "split": "held-out"}]}}))


def test_rows_become_chats(tmp_path, instantiate=templates.instantiate):
    """Fields come from "fields" or the row itself, numbers as text; a chat says task, cluster, source, id, template."""
    read = two_tasks(tmp_path)
    rows = [{"task": "length", "fields": {"text": "a b", "label": 2}, "id": "x"},
            {"task": "length", "text": "c", "label": 1.5, "more": None}]
    made = instantiate(rows, read, split="held-out", source="mine")
    assert made[0] == {"messages": [{"role": "user", "content": "Long? a b"}, {"role": "assistant", "content": "2"}],
                       "task": "length", "cluster": "counting", "source": "mine", "id": "x", "template": 3,
                       "inverted": False}
    assert made[1]["messages"][1]["content"] == "1.5" and made[1]["id"] == "length-2"
    assert instantiate([], read) == []


def test_a_template_is_drawn_from_the_seed(tmp_path, instantiate=templates.instantiate):
    """The same seed gives the same chats, another other ones; the templates of the split are equally likely."""
    read, rows = two_tasks(tmp_path), [{"task": "topic", "text": "t", "label": "l"}] * 1000
    assert instantiate(rows, read, seed=1) == instantiate(rows, read, seed=1) != instantiate(rows, read, seed=2)
    numbers = Counter(made["template"] for made in instantiate(rows, read))
    assert set(numbers) == {1, 2, 3, 4, 5} and max(abs(n - 200) for n in numbers.values()) < 4 * 160 ** 0.5


def test_inverted_templates_can_be_left_out(tmp_path, instantiate=templates.instantiate):
    """Inverted rows say so; with inverted=False there are none."""
    read, rows = two_tasks(tmp_path), [{"task": "length", "text": "t", "label": "l"}] * 50
    assert {(made["template"], made["inverted"]) for made in instantiate(rows, read)} == {(1, False), (2, True)}
    assert {made["template"] for made in instantiate(rows, read, inverted=False)} == {1}


@pytest.mark.parametrize("row, options, message", [
    ({"text": "t", "label": "l"}, {}, 'row 2: the key "task" is missing.*topic, length'),
    ({"task": "colour"}, {}, "row 2: no templates for the task 'colour'; there are topic, length"),
    ({"task": ["topic"]}, {}, "row 2: no templates for the task"),
    ({"task": "topic"}, {"split": "held-out"}, "row 2: the task 'topic' has no held-out template; add one"),
    ({"task": "topic"}, {"split": "test"}, "no split 'test'"),
    ({"task": "topic", "text": "t", "label": True}, {},
     r"row 2, template \d of the task 'topic': no field for the slot \{label\}.*: task, text"),
    ({"task": "topic", "text": "t", "label": " "}, {}, "row 2, template .*the assistant's content is empty")])
def test_bad_rows_are_refused(row, options, message, tmp_path, instantiate=templates.instantiate):
    """The error names the row, and what it lacks."""
    good = {"task": "length", "text": "t", "label": "l"}
    with pytest.raises(MiniftError, match=message):
        instantiate([good, row], two_tasks(tmp_path), **options)


def test_the_only_task_need_not_be_named(tmp_path):
    """A user's own file with one task: rows need no task; errors name file and row, and the options are passed on."""
    data = write(tmp_path, "d.jsonl", '{"text": "t", "label": 3}\n{"text": "u"}\n')
    file = write(tmp_path, "t.json", one_task())
    with pytest.raises(MiniftError, match=r"d\.jsonl, row 2, template 1 of the task 'topic': no field .*\{label\}"):
        from_jsonl(data, file)
    data = write(tmp_path, "d.jsonl", '{"text": "t", "label": 3}\n')
    made = from_jsonl(data, file, source="own", seed=4)
    assert made == [{"messages": [{"role": "user", "content": "Read: t"}, {"role": "assistant", "content": "3"}],
                     "task": "topic", "cluster": "news", "source": "own", "id": "topic-1", "template": 1,
                     "inverted": False}]


# ---- a reader of the stories ----


def words(text):
    return re.findall(r"[\w-]+", text)


def lines_of(text):
    return re.split(r"(?<=\.) ", text)


def only(group, text):
    found = set(words(text)) & set(group)
    assert len(found) == 1, (found, text)
    return found.pop()


def read_name(story):
    return only(lexicon.GIRLS + lexicon.BOYS, story)


def read_animal(story):
    return only(lexicon.ANIMALS, story)


def read_thing(story):
    """(colour, object), which stand side by side."""
    pairs = {(a, b) for a, b in zip(words(story), words(story)[1:]) if a in lexicon.COLOURS and b in lexicon.OBJECTS}
    assert len(pairs) == 1, story
    return pairs.pop()


def read_place(story):
    near, places = "|".join(lexicon.PLACE_ADJECTIVES), "|".join(sorted(lexicon.PLACES, key=len, reverse=True))
    found = set(re.findall(rf"\bthe (?:(?:{near}) )?(?:{places})(?![\w-])", story))
    assert len(found) == 1, story
    return found.pop()


def read_mood(story):
    last = lines_of(story)[-1]
    if re.search("laughed|smiled|cried", last):
        return "sad" if "cried" in last else "happy"
    return "happy" if set(words(last)) & set(lexicon.GLAD) else "sad"


def read_trouble(story):
    animal, thing = read_animal(story), read_thing(story)[1]
    for sign, clause in (("thief", f"a thief took the {thing}"), ("a tree", f"the {thing} got stuck in a tree"),
                         (r"\bwater\b", f"the {thing} fell into the water"), (r"\bbroken?\b", f"the {thing} broke"),
                         ("ran away|turned round", f"the {animal} ran away")):
        if re.search(sign, story):
            return clause
    return f"the {thing} got lost"


def article(noun):
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def read_fact(kind, story):
    """The answer to a question of this kind, as a phrase."""
    colour, thing = read_thing(story)
    return {"who": read_name(story), "where": f"at {read_place(story)}", "animal": article(read_animal(story)),
            "thing": article(thing), "colour": colour, "trouble": read_trouble(story),
            "ending": {"happy": "happily", "sad": "sadly"}[read_mood(story)]}[kind]


def where_it_happens(clause, story):
    """The number of the sentence that tells of an event."""
    signs = {"they met": " met the ", "they ate": " ate some ", "they played": "They played ", " said something": '"',
             " sniffed ": " sniffed ", " shared ": " shared ", " gave ": "gave ", " helped the ": " to carry the "}
    sign = next((sign for part, sign in signs.items() if part in clause), None)
    if sign is None:
        assert clause == read_trouble(story), (clause, story)
        sign = (" lost the | gone\\.|could not be found| water\\.|a tree|broke|a thief (?:came|took)|ran away|turned "
                "round")
        sign = r"and the \w+ \w+ was gone" if "Then" in story and " looked again," in story else sign
    subject = clause.split(" said something")[0] if sign == '"' else ""
    found = [i for i, line in enumerate(lines_of(story)) if re.search(sign, line) and subject in line]
    return found[0]


def rewritten(fields, kind):
    """The passage with each whole word old replaced by new; a and an are made alike."""
    group = {"name": lexicon.GIRLS + lexicon.BOYS, "colour": lexicon.COLOURS, "animal": lexicon.ANIMALS}[kind]
    old, new = fields["old"], fields["new"]
    girls = [name in lexicon.GIRLS for name in (old, new)] if kind == "name" else [True, True]
    by_hand = re.sub(rf"\b{old}\b", new, fields["passage"])
    assert old != new and new in group and girls[0] == girls[1] and old in fields["passage"]
    assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", fields["answer"])
    return [re.sub(r"\b([Aa])n\b", r"\1", text) for text in (by_hand, fields["answer"])]


def first_of(fields, place):
    places = {option: place(option) for option in (fields["one"], fields["two"])}
    assert None not in places.values() and len(set(places.values())) == 2, (places, fields["story"])
    return min(places, key=places.get)


def first_word(option, story):
    at = [place for place, word in enumerate(words(story)) if word == words(option)[-1]]
    return at[0] if at else None


STEMS = {"The child is called": "who", "It happened": "where", "The animal was": "animal", "The thing was": "thing",
         "The trouble was that": "trouble", "The story ended": "ending"}
QUESTIONS = {"What is the child called?": "who", "Where did it happen?": "where", "Which animal was there?": "animal",
             "Which thing is the story about?": "thing", "What went wrong?": "trouble", "How did it end?": "ending"}


def true_completion(fields, story):
    about_thing = f"The {read_thing(story)[1]} was"
    return read_fact("colour" if fields["stem"] == about_thing else STEMS[fields["stem"]], story) == fields["answer"]


def true_question(fields, story):
    about_thing = f"What colour was the {read_thing(story)[1]}?"
    kind = "colour" if fields["answer"] == about_thing else QUESTIONS[fields["answer"]]
    return read_fact(kind, story) == fields["fact"]


def true_facts(fields, story):
    told = dict(line.split(": ") for line in fields["facts"].splitlines())
    return fields["answer"] == story and told == {
        "child": read_name(story), "animal": read_animal(story), "thing": " ".join(read_thing(story)),
        "place": read_place(story), "trouble": read_trouble(story), "end": read_mood(story)}


def last_feeling(story):
    last = lines_of(story)[-1]
    assert " not " not in last
    return only(lexicon.GLAD + lexicon.SORRY, last)


def said(truth):
    return "yes" if truth else "no"


# task -> does the answer follow from the text? (fields, story)
TRUE = {
    **{kind: (lambda kind: lambda f, s: f["answer"] == read_fact(kind, s))(kind)
       for kind in ("who", "where", "animal", "thing", "colour")},
    "what_went_wrong": lambda f, s: f["answer"] == read_trouble(s),
    "ended_well": lambda f, s: f["answer"] == said(read_mood(s) == "happy"),
    "is_animal": lambda f, s: f["answer"] == said(f["an_asked"] == article(read_animal(s))),
    "is_colour": lambda f, s: f["answer"] == said(f["asked"] == read_thing(s)[0]) and f["asked"] in lexicon.COLOURS,
    "somebody_speaks": lambda f, s: f["answer"] == said('"' in s) == said(" said " in s),
    "animal_or": lambda f, s: f["answer"] == article(read_animal(s)),
    "colour_or": lambda f, s: f["answer"] == read_thing(s)[0],
    "place_or": lambda f, s: f["answer"] == f"at {read_place(s)}",
    "mood": lambda f, s: f["answer"] == read_mood(s),
    "feeling": lambda f, s: f["answer"] == last_feeling(s),
    "count_sentences": lambda f, s: f["answer"] == str(s.count(".")),
    "count_name": lambda f, s: f["answer"] == str(words(s).count(read_name(s))),
    "count_animal": lambda f, s: f["answer"] == str(words(s).count(read_animal(s))),
    "first_event": lambda f, s: f["answer"] == first_of(f, lambda option: where_it_happens(option, s)),
    "first_named": lambda f, s: f["answer"] == first_of(f, lambda option: first_word(option, s)),
    "sort_sentences": lambda f, s: f["answer"] == ("A, B" if s.index(f["one"]) < s.index(f["two"]) else "B, A"),
    **{f"change_{kind}": (lambda kind: lambda f, s: len(set(rewritten(f, kind))) == 1 and s.startswith(f["passage"]))(
        kind) for kind in ("name", "colour", "animal")},
    "missing_word": lambda f, s: f["gapped"].replace("___", f["answer"]) == s and f["gapped"].count("___") == 1
    and f["answer"] in words(f["gapped"])
    and f["answer"] in (read_name(s), read_animal(s), *read_thing(s)),
    "finish_fact": true_completion,
    "last_sentence": lambda f, s: f"{f['beginning']} {f['answer']}" == s and f["answer"] == lines_of(s)[-1],
    "summary": lambda f, s: f["answer"] == (f"{read_name(s)} and {read_fact('animal', s)} {read_fact('where', s)}: "
                                            f"{read_trouble(s)}, and it ended {read_fact('ending', s)}."),
    "title": lambda f, s: f["answer"] == f"{read_name(s)} and the {' '.join(read_thing(s))}",
    "key_facts": lambda f, s: f["answer"] == ", ".join((read_name(s), article(read_animal(s)),
                                                        article(" ".join(read_thing(s))), read_place(s))),
    **{task: lambda f, s: f["answer"] == s for task in ("story_child_animal", "story_ending", "story_thing_place")},
    "question_for_answer": true_question,
    "story_from_facts": true_facts,
    "request_for_story": lambda f, s: f["answer"] == (f"Write a story about {read_name(s)}, {article(read_animal(s))} "
                                                      f"and {article(' '.join(read_thing(s)))}."),
}


@pytest.mark.parametrize("task", world_tasks.TASKS)
def test_answers_are_what_the_text_says(task, world_rows=world_tasks.world_rows):
    """A reader of the text alone finds every answer."""
    for row in world_rows(120, 1, tasks=(task,)):
        assert TRUE[task](row["fields"], row["fields"]["story"]), row["fields"]


def test_the_common_fields_are_what_the_text_says(world_rows=world_tasks.world_rows):
    """The facts that a template of any task may name (and an inverted one asks for) are true of the story."""
    for row in world_rows(400, 2):
        fields, story = row["fields"], row["fields"]["story"]
        colour, thing = read_thing(story)
        read = {"name": read_name(story), "place": read_place(story), "animal": read_animal(story),
                "an_animal": article(read_animal(story)), "object": thing, "an_object": article(thing),
                "colour": colour, "thing": f"{colour} {thing}", "a_thing": article(f"{colour} {thing}"),
                "trouble": read_trouble(story), "mood": read_mood(story), "ending": read_fact("ending", story)}
        assert {key: fields[key] for key in read} == read


def test_earlier_really_comes_before_later(world_rows=world_tasks.world_rows):
    """The inverted templates of ordering promise a story in which one thing is before the other."""
    for row in world_rows(300, 3, tasks=("first_event", "first_named", "sort_sentences")):
        fields, story = row["fields"], row["fields"]["story"]
        place = {"first_event": where_it_happens, "first_named": first_word,
                 "sort_sentences": lambda line, text: text.index(line)}[row["task"]]
        assert place(fields["earlier"], story) < place(fields["later"], story), fields
        assert {fields["one"], fields["two"]} == {fields["earlier"], fields["later"]}


# ---- balance ----


def share(values, value):
    return sum(v == value for v in values) / len(values)


@pytest.mark.parametrize("task", YES_NO)
def test_yes_and_no_are_equally_likely(task, rows_of=rows_of):
    """Half of the answers are yes, to four standard errors."""
    answers = [fields["answer"] for fields in rows_of(task, 1000)]
    assert set(answers) == {"yes", "no"} and abs(share(answers, "yes") - 0.5) < 4 * 0.5 / 1000 ** 0.5


@pytest.mark.parametrize("task", ["animal_or", "colour_or", "place_or", "first_event", "first_named"])
def test_both_places_are_equally_likely(task, rows_of=rows_of):
    """The right option stands first in half of the rows, and the wrong one is never the right one."""
    rows = rows_of(task, 600)
    assert all(fields["one"] != fields["two"] for fields in rows)
    assert all(fields["answer"] in (fields["one"], fields["two"]) for fields in rows)
    firsts = [fields["answer"] == fields["one"] for fields in rows]
    assert abs(share(firsts, True) - 0.5) < 4 * 0.5 / 600 ** 0.5


def test_other_labels_are_balanced(rows_of=rows_of):
    """The order of two sentences, the mood and each count are as likely as the others of their kind."""
    for task, values in (("sort_sentences", ("A, B", "B, A")), ("mood", ("happy", "sad")), ("count_name", "2345"),
                         ("count_animal", "1234"), ("count_sentences", "56789")):
        answers = [fields["answer"] for fields in rows_of(task, 600)]
        p = 1 / len(values)
        off = [abs(share(answers, value) - p) for value in values]
        assert max(off) < 4 * (p * (1 - p) / 600) ** 0.5, (task, Counter(answers))


def test_wrong_options_are_wrong(rows_of=rows_of):
    """The wrong animal, colour or place is not in the text."""
    for task in ("is_animal", "is_colour", "animal_or", "colour_or", "place_or"):
        for fields in rows_of(task, 300):
            right = {"is_animal": fields["animal"], "is_colour": fields["colour"]}.get(task, fields["answer"])
            options = {fields["asked"]} if task in YES_NO else {fields["one"], fields["two"]}
            for wrong in options - {right}:
                assert words(wrong)[-1] not in words(fields["story"])


@pytest.mark.parametrize("kind, own, akin", [
    ("animal", "puppy", {"dog", "poodle"}), ("animal", "hen", {"chicken"}), ("colour", "red", {"scarlet"}),
    ("place", "the old quay", {"pier", "port"})])
def test_a_wrong_option_is_no_other_word_for_the_right_one(kind, own, akin, draw_other=world_facts.draw_other):
    """To "is it a dog?" nobody should have to answer no when it is a puppy."""
    rng = random.Random(0)
    scene = replace(world.draw_scene(rng), **{kind: own})
    drawn = {words(draw_other(kind, scene, rng))[-1] for _ in range(3000)}
    assert not drawn & (akin | {words(own)[-1]}) and len(drawn) > 10


def test_a_wrong_option_looks_like_a_right_one(rows_of=rows_of):
    """Wrong places have an adjective as often as right ones, so that the form gives nothing away."""
    rows = rows_of("place_or", 1000)
    long = {key: share([len(words(option)) for fields in rows for option in (fields["one"], fields["two"])
                        if (option == fields["answer"]) == key], 4) for key in (True, False)}
    assert abs(long[True] - long[False]) < 4 * (2 * 0.4 * 0.6 / 1000) ** 0.5


def test_kin_are_words_of_the_lexicon():
    """A misspelt word would keep no two words apart."""
    unknown = set().union(*world_facts.KIN) - set(lexicon.ANIMALS + lexicon.COLOURS + lexicon.PLACES)
    assert not unknown


# ---- splits and seeds ----


def test_splits_share_no_scene(world_rows=world_tasks.world_rows):
    """No child with the same place, animal and thing, and no story, is in two splits."""
    splits = [{tuple(row["fields"][key] for key in ("name", "place", "animal", "thing")) for row in
               world_rows(1500, 0, split)} for split in ("train", "valid", "test")]
    assert not any(a & b for a, b in combinations(splits, 2)) and all(len(split) == 1500 for split in splits)


def test_same_seed_same_rows(world_rows=world_tasks.world_rows):
    """The rows come from the seed; tasks take turns, clusters are theirs, ids and JSON round trips hold."""
    rows = world_rows(72, 5)
    assert rows == world_rows(72, 5) != world_rows(72, 6)
    assert [row["task"] for row in rows] == 2 * list(world_tasks.TASKS) and len({row["id"] for row in rows}) == 72
    assert all(row["cluster"] == TEMPLATES[row["task"]]["cluster"] for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    assert all(isinstance(value, str) and value.strip() for row in rows for value in row["fields"].values())


@pytest.mark.parametrize("tasks, message", [(("who", "whom"), "no task 'whom' about the world; there are who, "),
                                            ((), "no task was named; there are who, ")])
def test_unknown_tasks_are_refused(tasks, message, world_rows=world_tasks.world_rows):
    """The error lists the tasks that there are."""
    with pytest.raises(MiniftError, match=message):
        world_rows(3, 0, tasks=tasks)


# ---- the file of templates ----


def every_template(read=TEMPLATES):
    return [(task, number, template) for task, entry in read.items()
            for number, template in enumerate(entry["templates"], start=1)]


def test_there_are_enough_tasks_and_templates(read=TEMPLATES):
    """26 tasks in 9 clusters at least; each has 5 seen templates, one of them inverted, and 2 held-out ones."""
    assert set(read) == set(world_tasks.TASKS) and len(read) >= 26
    assert len({entry["cluster"] for entry in read.values()}) >= 9
    for task, entry in read.items():
        kinds = Counter((template["split"], template["inverted"]) for template in entry["templates"])
        assert entry["cluster"] == world_tasks.TASKS[task][0]
        assert kinds["seen", False] >= 5 and kinds["seen", True] >= 1 and kinds["held-out", False] >= 2, task


def test_no_text_occurs_twice(every=every_template):
    """No two templates of the file have the same instruction; two of one task share less than ROUGE-L 0.7."""
    texts = Counter(" ".join(re.findall(r"\w+", template["instruction"].lower())) for _, _, template in every())
    assert max(texts.values()) == 1, texts.most_common(1)
    bare = [(task, re.sub(r"{\w+}", " ", template["instruction"])) for task, _, template in every()]
    for (task, one), (other, two) in combinations(bare, 2):
        assert task != other or rouge_l(one, two) < 0.7, (one, two)


def test_templates_do_not_give_the_answer_away(every=every_template):
    """Only an inverted instruction names the answer; held-out ones, by which a task is judged, answer with it alone."""
    for task, number, template in every():
        asks = templates.slots(template["instruction"])
        given = {"answer"} & set(asks) if task not in ("story_child_animal", "story_ending", "story_thing_place") else (
            {"answer", "story"} & set(asks))
        assert not given or template["inverted"], (task, number)
        assert template["split"] == "seen" or template["response"] == "{answer}" and not template["inverted"]


def test_every_task_fits_each_of_its_templates(every=every_template, fill=templates.fill):
    """No template of a task asks for a field that its examples lack, no slot is left, and the articles fit."""
    rows = {task: rows_of(task, 10, 7) for task in TEMPLATES}
    for task, number, template in every():
        for fields in rows[task]:
            for key in ("instruction", "response"):
                text = fill(template[key], fields, f"{task} {number}")
                assert text.strip() and not re.search(r"[{}]|\ba [aeiou]|\b[Aa]n [^aeiou]", text), text


def as_pattern(text):
    """What a template can become, as a regular expression."""
    return re.compile("(?s)" + ".+?".join(re.escape(part) for part in re.split(r"{\w+}", text)))


def test_held_out_wordings_are_never_seen(instantiate=templates.instantiate):
    """No chat of the seen split has the form of a held-out template; those of the held-out split all have one."""
    rows = world_tasks.world_rows(1080, 8)
    held = {task: [as_pattern(template["instruction"]) for template in entry["templates"]
                   if template["split"] == "held-out"] for task, entry in TEMPLATES.items()}
    every = sum(held.values(), [])
    for made in instantiate(rows, TEMPLATES, seed=1):
        assert not any(pattern.fullmatch(made["messages"][0]["content"]) for pattern in every), made
    for made in instantiate(rows, TEMPLATES, seed=1, split="held-out"):
        assert any(pattern.fullmatch(made["messages"][0]["content"]) for pattern in held[made["task"]])


def test_chats_fit_the_base(instantiate=templates.instantiate):
    """With the base's tokenizer 99 of 100 chats have at most 256 tokens, whichever the template."""
    tokenizer = Tokenizer.load(ROOT / "data" / "base" / "tokenizer.json")
    rows = world_tasks.world_rows(1080, 9)
    for split in templates.SPLITS:
        lengths = [len(chat.encode_chat(tokenizer, made["messages"])[0])
                   for made in instantiate(rows, TEMPLATES, split=split)]
        assert share([length <= 256 for length in lengths], True) >= 0.99
