"""Documents and worksheets, by hand: what is said about one scene, and the words and numbers around exercises."""

import random
import re

import pytest

from minift.world import corpus, practice
from minift.world.scenes import Scene

ADA = Scene(name="Ada", girl=True, place="the old mill", animal="owl", object="kite", colour="red", helper="baker",
            food="bread", weather="sunny", time="day", size="small", make="plain", trouble="the {object} broke",
            happy=True, late=False, kind=False, speech=False)


@pytest.mark.parametrize(("kind", "short", "sentence"), [
    ("who", "Ada", "The child is called Ada."),
    ("where", "at the old mill", "It happened at the old mill."),
    ("animal", "an owl", "The animal was an owl."),
    ("thing", "a kite", "It was a kite."),
    ("colour", "red", "The kite was red."),
    ("trouble", "the kite broke", "The trouble was that the kite broke."),
    ("ending", "happily", "The story ended happily."),
])
def test_answers_by_hand(kind, short, sentence, ask=corpus.ask):
    """A fact is answered in a word or phrase, or in a sentence; left to chance, in each form half of the time."""
    rng = random.Random(0)
    assert ask(kind, ADA, rng, short=True)[1] == short and ask(kind, ADA, rng, short=False)[1] == sentence
    drawn = [ask(kind, ADA, rng)[1] for _ in range(400)]
    # 5 sigma of 400 fair coins: 0.125.
    assert set(drawn) == {short, sentence} and abs(drawn.count(short) / 400 - 0.5) < 0.125


def test_a_false_colour_is_another_colour_of_the_same_thing(true_or_false=corpus.true_or_false):
    """Two statements a text; half of those about the colour give the kite another one, and say that it is false."""
    rng = random.Random(0)
    texts = [true_or_false(ADA, rng).split("\n") for _ in range(600)]
    assert all(len(lines) == 2 and lines[0] != lines[1] for lines in texts)
    about = [line for lines in texts for line in lines if re.match(r"The kite was \w+\.", line)]
    verdicts = [line.endswith(" True.") for line in about]
    assert verdicts == [line.startswith("The kite was red.") for line in about] and len(about) > 150
    assert 0.3 < sum(verdicts) / len(verdicts) < 0.7


def test_dialogues_are_quoted_or_printed(dialogue=corpus.dialogue):
    """Half of the dialogues are told with quotes, half printed as a play; in both, two people take turns."""
    rng, quoted = random.Random(0), 0
    for _ in range(400):
        lines = dialogue(ADA, rng).split("\n")
        told = lines[0].startswith('"')
        quoted += told
        form = r'".*" (?:asked|said) (\w+)\.|.*" said (\w+)\.' if told else r"(\w+): .*"
        assert all(re.fullmatch(form, line) for line in lines)
    assert abs(quoted / 400 - 0.5) < 0.125


@pytest.mark.parametrize("kind", practice.KINDS)
def test_words_around_a_request(kind, wrap_request=practice.wrap_request):
    """Two of five requests have words before them, a quarter words after them; but none after a text that is quoted.

    A request of these kinds ends with a sentence of the story: words after it would seem to be a part of it.
    """
    rng = random.Random(0)
    made = [wrap_request(kind, "REQUEST", rng) for _ in range(1000)]
    before = sum(not text.startswith("REQUEST") for text in made) / 1000
    after = sum(not text.endswith("REQUEST") for text in made) / 1000
    # 5 sigma of 1,000 draws.
    assert abs(before - 0.4) < 0.078
    assert after == 0 if kind in ("order", "gap", "finish", "next", "rewrite") else abs(after - 0.25) < 0.069


def test_exercises_are_counted_from_one(worksheets=practice.worksheets):
    """Where exercises, and answers, are numbered, the numbers are 1, 2, 3 ... in both orders of a sheet."""
    numbered = 0
    for sheet in worksheets(400, 3):
        sheet = re.sub("^(Before you read|Now): ", "", sheet, flags=re.MULTILINE)
        for mark in (r"^Exercise (\d+):", r"^Task (\d+):", r"^\((\d+)\)", r"^(\d+)\. "):
            numbers = [int(n) for n in re.findall(mark, sheet, re.MULTILINE)]
            if numbers:
                numbered += 1
                half = numbers[:len(numbers) // 2]
                whole = list(range(1, len(numbers) + 1))
                assert numbers == whole or numbers == half * 2 == [*range(1, len(half) + 1)] * 2, sheet
    assert numbered > 50


def test_sheets_have_up_to_six_exercises(worksheet=practice.worksheet):
    """Six draws of kinds, each kind at most once a sheet: sheets with the story first have two to six exercises."""
    rng, counts = random.Random(0), []
    for _ in range(300):
        sheet = worksheet(rng)
        counts.append(len(re.findall(r"^Exercise \d+:", sheet, re.MULTILINE)))
    found = {n for n in counts if n}
    assert max(found) >= 5 and max(found) <= 6 and min(found) >= 2


def test_shares_of_documents(monkeypatch, document=corpus.document):
    """Of 100 documents 20 are a story alone, 20 have a plan before it; after it 30 a quiz, 12 a talk, 10 facts, 4
    statements; 4 have facts before it."""
    for name in ("plan", "quiz", "dialogue", "fact_list", "true_or_false"):
        monkeypatch.setattr(corpus, name, lambda scene, rng, name=name: name)
    monkeypatch.setattr(corpus, "tell", lambda scene, rng: "story")
    rng, n = random.Random(0), 4000
    made = [document(rng).replace("\n", "|").replace("planstory", "plan|story") for _ in range(n)]
    shares = {"story": 20, "plan|story": 20, "story|quiz": 30, "story|dialogue": 12, "story|fact_list": 10,
              "story|true_or_false": 4, "fact_list|story": 4}
    assert set(made) == set(shares)
    for form, percent in shares.items():
        share = percent / 100
        assert abs(made.count(form) / n - share) < 5 * (share * (1 - share) / n) ** 0.5, form


@pytest.mark.parametrize(("part", "mark", "least", "most"), [
    ("quiz", r"^Q: ", 2, 4), ("quiz", r"^\(\d\) ", 2, 4), ("dialogue", r"\?", 2, 3), ("fact_list", r"^.", 3, 6)])
def test_sizes_of_parts(part, mark, least, most):
    """A quiz has 2 to 4 questions, counted from 1; a talk 2 or 3; a list 3 to 6 facts; every size occurs."""
    rng = random.Random(0)
    made = [getattr(corpus, part)(ADA, rng) for _ in range(600)]
    found = [re.findall(mark, text, re.MULTILINE) for text in made]
    assert {len(marks) for marks in found if marks} == set(range(least, most + 1))
    if "d" in mark:
        assert all(marks == [f"({i}) " for i in range(1, len(marks) + 1)] for marks in found)


def test_plans_name_child_animal_and_thing(plan=corpus.plan):
    """In any order, each with its article; three of ten plans name the place as well."""
    rng = random.Random(0)
    made = [plan(ADA, rng) for _ in range(600)]
    assert all(part in text for text in made for part in ("Ada", "an owl", "a red kite"))
    # 5 sigma of 600 draws.
    assert abs(sum("the old mill" in text for text in made) / 600 - 0.3) < 0.094
    orders = {tuple(sorted(("Ada", "an owl", "a red kite"), key=text.index)) for text in made}
    assert len(orders) == 6
