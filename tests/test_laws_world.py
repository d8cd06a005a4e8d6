"""The world's text is what the committed weights have read; its rubric, checker and labels by hand."""

import hashlib
import random
import re
from dataclasses import replace

import pytest

from minift.world import checker, corpus, labelled, practice, rubric
from minift.world.scenes import Scene

# ---- the text of the committed weights ----

# sha256 of the first 1,000 texts of each corpus that data/base and data/encoder were trained on (seed 0), joined by a
# zero byte. They were noted from the code that trained them. If one changes, the weights have not read what the world
# now tells: restore the text, or train both checkpoints anew (`pretrain --recipe base`, `mlm --recipe encoder`).
CORPORA = {
    "documents": "ce0ce86f3bebffba75170ad94a96d6f94fa7f92be2bf4d3645876a78b5717e4f",
    "documents among worksheets": "803bf56e27f5fa7ce6f5ab170e8f756f3b071147257524c685174c1c5cbc6004",
    "worksheets": "3d53643d0abda05ec473cff714ee512a4e2849717b21b39fcef0cc031a8e204f",
    "statements": "4861441288a5f732946c7453c42879ac91bc4436dac4f239cf65ce62013d2d88",
}


@pytest.mark.parametrize(("name", "texts"), [
    ("documents", lambda: corpus.documents(1000, 0)),
    ("documents among worksheets", lambda: corpus.documents(1000, "0/practice")),
    ("worksheets", lambda: practice.worksheets(1000, 0)),
    ("statements", lambda: labelled.statements(1000, 0)),
])
def test_the_world_tells_what_the_committed_weights_have_read(name, texts):
    """Every corpus of data/base and data/encoder is, to the byte, the one from which they were trained."""
    assert hashlib.sha256("\0".join(texts()).encode()).hexdigest() == CORPORA[name]


# ---- the rubric, by hand ----

ADA = Scene(name="Ada", girl=True, place="the old mill", animal="fox", object="kite", colour="red", helper="baker",
            food="bread", weather="sunny", time="day", size="small", make="plain", trouble="the {object} broke",
            happy=True, late=False, kind=False, speech=False)
OPENING = "Ada and a small fox walked slowly to the old mill."
THING = "She carried a red kite."
TROUBLE = "Then the red kite broke in two."
TURN = "The baker mended it with string and glue."
NO_TURN = "Nobody knew how to mend it."
KINDNESS = "She hugged the fox and gave it some bread."
SPEECH = '"Come with me to the old mill," said Ada to the fox.'
LATE = "But the next day the baker came to the door, and all was well again."
END = "In the end Ada was glad."
SAD_END = "In the end Ada was sad."


@pytest.mark.parametrize(("sentences", "points"), [
    # Asked for and kept: 2. Whole: 2.5. Happy: 2.5, kind: 2, speech: 1.
    ((OPENING, THING, TROUBLE, TURN, END), 7),
    ((OPENING, THING, TROUBLE, TURN, KINDNESS, END), 9),
    ((OPENING, THING, TROUBLE, TURN, SPEECH, END), 8),
    ((OPENING, THING, TROUBLE, NO_TURN, SAD_END), 4.5),
    # A late turn decides, not the first one.
    ((OPENING, THING, TROUBLE, NO_TURN, LATE, END), 7),
    # Each part that a whole story has is worth 2.5 / 4; without one of them taste does not count.
    ((THING, TROUBLE, TURN, KINDNESS, END), 2 + 3 * 0.625),
    ((OPENING, THING, TROUBLE, KINDNESS, END), 2 + 3 * 0.625),
    ((OPENING, THING, TROUBLE, TURN, KINDNESS), 2 + 3 * 0.625),
    # Without a trouble there is no turn after one.
    ((OPENING, THING, TURN, KINDNESS, END), 2 + 2 * 0.625),
    ((OPENING, THING, TURN, TROUBLE, END), 2 + 3 * 0.625),
    # What was asked for: child, animal, thing and its colour, half a point each.
    ((OPENING, TURN, "It had been a good day, and Ada was glad."), 2 * 0.5 + 2 * 0.625),
    ((OPENING, "She never went out without her kite."), 2 * 0.75 + 0.625 - 0.5),
    # Half a point for each fault: of no known form, said twice, two troubles, two endings, an end against the turn.
    ((OPENING, THING, TROUBLE, TURN, "The moon is made of cheese.", END), 6.5),
    ((OPENING, THING, TROUBLE, TURN, "The moon is made of cheese.", "The sea is dry.", END), 6),
    ((OPENING, THING, THING, TROUBLE, TURN, END), 6.5),
    ((OPENING, THING, THING, THING, TROUBLE, TURN, END), 6),
    ((OPENING, THING, TROUBLE, "Suddenly there was a crack, and the red kite was broken.", TURN, END), 6.5),
    ((OPENING, THING, TROUBLE, TURN, "It had been a good day, and Ada was glad.", END), 6.5),
    ((OPENING, THING, TROUBLE, NO_TURN, END), 6.5),
    ((OPENING, THING, TROUBLE, TURN, SAD_END), 4),
    # Another child, animal, thing, colour, place or gender is one fault, and so are two of them in one sentence.
    # (This one is of no known form as well.)
    ((OPENING, THING, TROUBLE, TURN, "Ben was glad.", END), 6),
    ((OPENING, THING, TROUBLE, TURN, "Then Ben helped the baker to carry the bread.", END), 6.5 + 2),
    ((OPENING, THING, TROUBLE, TURN, "She hugged the goat and gave it some bread.", END), 6.5 + 2),
    ((OPENING, "She carried a red drum.", THING, TROUBLE, TURN, END), 6.5),
    ((OPENING, "She carried a blue kite.", THING, TROUBLE, TURN, END), 6.5),
    ((OPENING, THING, "They sat down at the new mill and ate some bread.", TROUBLE, TURN, END), 6.5),
    ((OPENING, THING, "They sat down at the old tower and ate some bread.", TROUBLE, TURN, END), 6.5),
    ((OPENING, "He carried a red kite.", TROUBLE, TURN, END), 6.5),
    ((OPENING, "Under his arm he held a red kite.", TROUBLE, TURN, END), 6.5),
    ((OPENING, "Ada never went out without his red kite.", TROUBLE, TURN, END), 6.5),
    ((OPENING, "The baker had given him a plain red kite.", TROUBLE, TURN, END), 6.5),
    # Only things have a colour of their own, and "the red tower" is no place of the world: of no known form, no more.
    ((OPENING, THING, TROUBLE, TURN, "The sky was blue.", END), 6.5),
    ((OPENING, THING, TROUBLE, TURN, "The baker saw the red tower.", END), 6.5),
    ((OPENING, THING, TROUBLE, TURN, "He hugged the goat and gave it some bread.", END), 6.5 + 2),
    # A saw is a thing, but in these forms it is what somebody did.
    ((OPENING, THING, "Then a thief took the red kite and ran away.", "Nobody saw the thief again.", SAD_END), 4.5),
])
def test_points_by_hand(sentences, points, judge=rubric.judge):
    """Points for what was asked, for each part of a whole story, and for taste in a whole one; 0.5 off for a fault."""
    assert judge(" ".join(sentences), ADA).score == pytest.approx(points, abs=1e-9)


def test_the_rubric_knows_a_boy(judge=rubric.judge):
    """Of a boy it is "she" and "her" that are faults."""
    told = (OPENING, THING, TROUBLE, TURN, END)
    story = " ".join(told).replace("Ada", "Ben").replace("She", "He")
    boy = replace(ADA, name="Ben", girl=False)
    assert judge(story, boy).score == 7
    assert judge(story.replace("He carried", "She carried"), boy).score == 6.5
    assert judge(story.replace("He carried a", "Under her arm he held a"), boy).score == 6.5


def test_a_story_falls_into_sentences(sentences=rubric.sentences):
    """A sentence ends with its sign and the quote after it; white space is none; the last one may lack its sign."""
    assert sentences('He ran. "Who?" She did!  \n') == ["He ran.", '"Who?"', "She did!"]
    assert sentences("He ran. She") == ["He ran.", "She"] and sentences("") == sentences(" ") == []


def test_no_story_has_less_than_nothing(judge=rubric.judge):
    """Many faults cost more than there is; the score stays at 0."""
    assert judge(" ".join(f"Moon {i} is dry." for i in "abcdefgh"), ADA).score == 0


# ---- reading a story back ----

STORY = " ".join((OPENING, THING, TROUBLE, TURN, END))
READ = {"name": "Ada", "animal": "fox", "an_animal": "a fox", "object": "kite", "an_object": "a kite",
        "colour": "red", "thing": "red kite", "a_thing": "a red kite", "place": "the old mill",
        "trouble": "the kite broke", "mood": "happy", "ending": "happily"}


@pytest.mark.parametrize(("old", "new", "changes"), [
    ("", "", {}),
    ("Ada was glad", "Ada was sad", {"mood": "sad", "ending": "sadly"}),
    ("small fox", "small owl", {"animal": "owl", "an_animal": "an owl"}),
    # A place is read with its adjective, and without one whatever word comes after it.
    ("the old mill", "the mill", {"place": "the mill"}),
    ("the old mill.", "the mill when it rained.", {"place": "the mill"}),
    ("the old mill.", "the old mill when it rained.", {"place": "the old mill"}),
    ("to the old mill", "to the big mill", {"place": None}),
    # Two things: neither the thing nor what it takes to say what went wrong. The colour is still one.
    ("She carried", "She had a drum. She carried",
     {"object": None, "an_object": None, "thing": None, "a_thing": None, "trouble": None}),
    # No colour: there is a thing, but no coloured one. ("the kite broke in two" is no form of the world.)
    ("red ", "", {"colour": None, "thing": None, "a_thing": None, "trouble": None}),
    # Two troubles, or none.
    ("The baker mended", "Then a thief took the red kite and ran away. The baker mended", {"trouble": None}),
    (TROUBLE, "But on the way she lost the kite.", {"trouble": "the kite got lost"}),
    (TROUBLE, "", {"trouble": None}),
    # A saw is a thing after an article or a colour; elsewhere somebody saw something.
    ("The baker", "Nobody saw it. The baker", {}),
    ("kite", "saw", {"object": "saw", "an_object": "a saw", "thing": "red saw", "a_thing": "a red saw",
                     "trouble": "the saw broke"}),
    ("red kite broke", "saw broke", {"object": None, "an_object": None, "thing": None, "a_thing": None,
                                     "trouble": None}),
])
def test_a_story_read_by_hand(old, new, changes, read_story=checker.read_story):
    """Each fact that the story tells once is read, with its article where it has one; all others are left out."""
    expected = {key: value for key, value in {**READ, **changes}.items() if value is not None}
    assert read_story(STORY.replace(old, new) if old else STORY) == expected


def test_nothing_is_read_from_nothing(read_story=checker.read_story):
    """An empty answer of a model has no facts, and is no error."""
    assert read_story("") == read_story(" \n") == {}


@pytest.mark.parametrize(("task", "facts", "values", "right"), [
    ("who", {"name": "Ada"}, {}, "Ada"),
    ("who", {"animal": "fox"}, {}, None),
    ("where", {"place": "the mill"}, {}, "at the mill"),
    ("ended_well", {"mood": "happy"}, {}, "yes"),
    ("ended_well", {"mood": "sad"}, {}, "no"),
    ("ended_well", {}, {}, None),
    ("mood", {"mood": "sad"}, {}, "sad"),
    ("mood", {}, {}, None),
    ("somebody_speaks", {}, {"story": '"Ah," said Ada.'}, "yes"),
    ("somebody_speaks", {}, {"story": "Ada said it."}, "no"),
    ("is_animal", {"animal": "owl"}, {"asked": "owl"}, "yes"),
    ("is_animal", {"animal": "owl"}, {"an_asked": "an owl"}, "yes"),
    ("is_animal", {"animal": "owl"}, {"an_asked": "a fox"}, "no"),
    ("is_animal", {"colour": "red"}, {"an_asked": "a fox"}, None),
    ("is_colour", {"colour": "red"}, {"asked": "red"}, "yes"),
    ("animal_or", {"animal": "owl"}, {"one": "an owl", "two": "a fox"}, "an owl"),
    ("animal_or", {"animal": "owl"}, {"one": "a fox", "two": "an owl"}, "an owl"),
    ("animal_or", {"animal": "cat"}, {"one": "a fox", "two": "an owl"}, None),
    ("place_or", {"place": "the mill"}, {"one": "at the mill", "two": "at the zoo"}, "at the mill"),
    ("place_or", {}, {"one": "at the mill", "two": "at the zoo"}, None),
])
def test_right_answers_by_hand(task, facts, values, right, right_answer=checker.right_answer):
    """The answer that the facts decide; None where a fact is missing, or neither option is right."""
    assert right_answer(task, facts, values) == right


# ---- labelled texts ----

# Sentences of a letter -> the share of letters that have one.
LETTER_SHARES = {
    r"I thought that all was|It looked \w+ to us": 0.5,
    r"We have a|It has been a": 0.5,
    r"[.?] (I am \w+|You see me \w+)\. Yours": 0.25,
    r"So I am not|Do not call me": 0.15,
    r"Now I am|before; I am|Do not think that|My aunt is": 0.6,
}


@pytest.mark.parametrize("form", LETTER_SHARES)
def test_shares_of_letters(form, labelled=labelled.labelled):
    """Half of the letters turn late, half speak of the weather; 25, 15 and 60 % end plain, denied and in a contrast."""
    n, share = 2000, LETTER_SHARES[form]
    texts = [row["text"] for row in labelled("sentiment", n, 9, domain="letters")]
    found = sum(re.search(form, text) is not None for text in texts) / n
    assert abs(found - share) < 5 * (share * (1 - share) / n) ** 0.5


def test_first_turns_mislead_in_late_stories_only(labelled=labelled.labelled):
    """The turn after the trouble agrees with the ending, unless a late turn reverses it; 3 of 10 have a detail."""
    rows = labelled("sentiment", 2000, 9)
    details = 0
    for row in rows:
        roles = [rubric.role_of(part) for part in rubric.sentences(row["text"])]
        turn = roles[roles.index("trouble") + 1]
        late = re.search("All seemed|Everybody thought", row["text"]) is not None
        assert turn in ("good turn", "bad turn")
        assert (turn == "good turn") == ((row["label"] == "happy") != late), row
        # An opening of two sentences has a detail of its own, before the thing.
        details += roles[roles.index("trouble") - 1] == "detail"
    # 5 sigma of 2,000 draws.
    assert abs(details / 2000 - 0.3) < 5 * (0.3 * 0.7 / 2000) ** 0.5


def test_what_a_text_tells_decides_the_statement(state=labelled.state):
    """A text that leaves no fact open has no unknown statement; half of the statements are about what it alone tells.

    The other half are about child, place, animal and colour, which every text tells.
    """
    text = "sunny day baker bread small plain."
    rng, told = random.Random(0), ("weather", "happened on", "speaks of", "some", "was small", "thing was")
    made = [state(ADA, text, rng) for _ in range(2000)]
    labels = [label for _, label in made]
    assert set(labels) == {"yes", "no"} and abs(labels.count("yes") / 2000 - 0.5) < 0.056
    # "The animal was small." and "The animal was a fox." differ in the article.
    always = re.compile("The child is called|It happened at|The animal was an? |The kite was")
    optional = [statement for statement, _ in made if not always.match(statement)]
    assert abs(len(optional) / 2000 - 0.5) < 0.056 and all(
        any(part in statement for statement in optional) for part in told)
