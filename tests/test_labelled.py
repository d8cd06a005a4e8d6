"""Labelled texts: each label is what the text says, read without the scene; no keyword decides; splits stay apart.

Here the labels are read off the texts by a reader of their own, which knows the lexicon and no scene.
"""

import re
from collections import Counter

import pytest
import torch

from minift.errors import MiniftError
from minift.world import labelled as sets
from minift.world import lexicon
from minift.world import scenes as world

OPTIONAL = {        # statements about facts that only some texts tell: form -> the group of the word
    r"The weather was (\w+)\.": lexicon.WEATHER, r"It happened on an? (\w+)\.": lexicon.TIMES,
    r"The story speaks of an? (\w+)\.": lexicon.HELPERS, r"There were some (\w+)\.": lexicon.FOODS,
    r"The animal was (\w+)\.": lexicon.SIZES, r"The thing was (\w+)\.": lexicon.MAKES,
}
ALWAYS = (r"The child is called (\w+)\.", r"It happened at (the [\w -]+)\.", r"The animal was an? (\w+)\.",
          r"The (\w+ was \w+)\.")
CONTRARY = (        # the word after these is not how it ends
    r"not (\w+)", r"no longer (\w+)", r"had been (\w+)", r"go home (\w+), but", r"was (\w+), but", r"is (\w+), but",
    r"was (\w+) before", r"think that I am (\w+),", r"call me (\w+)",
)
TOPICS = {          # domain -> what the trouble looks like, the first that is found
    "stories": (("thief", "thief"), ("a tree", "tree"), (r"\bwater\b", "water"), (r"\bbroken?\b", "broken"),
                ("ran away|turned round", "runaway"), ("", "lost")),
    "letters": (("stole|robber", "thief"), ("twigs|branches", "tree"), ("got wet|waves", "water"),
                ("pieces|crack", "broken"), ("slipped away|lead", "runaway"), ("", "lost")),
}
PAIRS = [(task, domain) for task in sets.LABELS for domain in sets.DOMAINS]


def word_list(text):
    return re.findall(r"[\w-]+", text)


def read_feeling(text):
    """happy or sad: the feeling in the last sentence that is not denied, or else the contrary of the one that is."""
    last = re.split(r"(?<=[.?]) ", text.removesuffix(text[text.find(" Yours, "):] if " Yours, " in text else ""))[-1]
    denied = {word for form in CONTRARY for word in re.findall(form, last)}
    glad, sorry = (set(word_list(last)) & set(group) for group in (lexicon.GLAD, lexicon.SORRY))
    if (glad | sorry) - denied:
        return "happy" if glad - denied else "sad"
    if glad | sorry:
        return "sad" if glad else "happy"
    return "happy" if re.search("laughed|smiled", last) else "sad"


def read_statement(text, statement):
    """yes, no or unknown: is it told, is something else of its kind told, or nothing?"""
    told = set(word_list(text))
    for form, group in OPTIONAL.items():
        match = re.fullmatch(form, statement)
        if match and match[1] in group:
            return "yes" if match[1] in told else "no" if told & set(group) else "unknown"
    claim = next(re.fullmatch(form, statement)[1] for form in ALWAYS if re.fullmatch(form, statement))
    if " was " in claim:                                                     # a thing and its colour
        thing, colour = claim.split(" was ")
        claim = f"{colour} {thing}"
    return "yes" if re.search(rf"\b{claim}\b(?!-)", text) else "no"


def read_label(task, domain, row):
    if task == "sentiment":
        return read_feeling(row["text"])
    if task == "topic":
        return next(label for form, label in TOPICS[domain] if re.search(form, row["text"]))
    return read_statement(row["text"], row["text_pair"])


@pytest.mark.parametrize("task, domain", PAIRS)
def test_labels_are_what_the_text_says(task, domain, labelled=sets.labelled):
    """A reader of the text alone, and of the statement, finds every label; a late turn agrees with the ending."""
    for row in labelled(task, 500, 1, domain=domain):
        assert row["label"] == read_label(task, domain, row), row
        turn = re.search(r"then all was (\w+)|yet it came out (\w+)|but all is (\w+)|yet it is (\w+)", row["text"])
        if task == "sentiment" and turn:
            assert (row["label"] == "happy") == ("well" in turn.groups()), row


@pytest.mark.parametrize("task, domain", PAIRS)
def test_labels_are_equally_likely(task, domain, labelled=sets.labelled):
    """Each of the L labels has a share of 1 / L, within 5 sigma; rows hold text and label, pairs a second text."""
    n, labels = 1000, sets.LABELS[task]
    rows = labelled(task, n, 2, domain=domain)
    counts = Counter(row["label"] for row in rows)
    assert counts.keys() == set(labels)
    sigma = (n * (1 - 1 / len(labels)) / len(labels)) ** 0.5
    assert all(abs(count - n / len(labels)) < 5 * sigma for count in counts.values()), counts
    keys = {"text", "label"} | ({"text_pair"} if task == "follows" else set())
    assert len(rows) == n and all(row.keys() == keys and all(row.values()) for row in rows)


def test_there_are_three_tasks_one_with_four_classes_or_more():
    """sentiment of the ending, topic (6 classes), and a pair task with yes, no and unknown."""
    assert sets.LABELS.keys() == {"sentiment", "topic", "follows"} and set(sets.LABELS["sentiment"]) == {"sad", "happy"}
    assert len(set(sets.LABELS["topic"])) == 6 and set(sets.LABELS["follows"]) == {"yes", "no", "unknown"}


# ---- what it takes to read them ----


@pytest.mark.parametrize("domain", sets.DOMAINS)
def test_no_keyword_tells_the_ending(domain, labelled=sets.labelled):
    """Glad words, sorry words, "not", "well" and "lost" stand in texts of both labels about as often, and no single
    word tells the label in more than two cases of three."""
    rows = [(set(word_list(row["text"].lower())), row["label"]) for row in labelled("sentiment", 1500, 3,
                                                                                     domain=domain)]
    for group in (lexicon.GLAD, lexicon.SORRY, ["not"], ["well"], ["lost"]):
        labels = [label for told, label in rows if told & set(group)]
        assert len(labels) > 300 and 0.35 < labels.count("happy") / len(labels) < 0.65, group
    happy = sum(label == "happy" for _, label in rows)
    with_word = Counter((word, label) for told, label in rows for word in told)
    for word in {word for word, _ in with_word}:
        a, b = with_word[word, "happy"], with_word[word, "sad"]
        right = max(a, b) + max(happy - a, len(rows) - happy - b)
        assert right / len(rows) < 2 / 3, word


@pytest.mark.parametrize("domain", sets.DOMAINS)
def test_a_bag_of_words_cannot_read_the_ending(domain, labelled=sets.labelled):
    """The best linear rule on counts of words, found on 1,000 texts, is right in less than 65 % of 1,000 others."""
    train, test = (labelled("sentiment", 1000, 4, split, domain) for split in ("train", "test"))
    known = [word for word, _ in Counter(word for row in train for word in word_list(row["text"])).most_common(300)]
    def counts(rows):
        return torch.tensor([[1.0, *map(word_list(row["text"]).count, known)] for row in rows])      # (N, 301)
    def signs(rows):
        return torch.tensor([1.0 if row["label"] == "happy" else -1.0 for row in rows])
    x = counts(train)
    weights = torch.linalg.solve(x.T @ x + torch.eye(301), x.T @ signs(train))
    right = [((counts(rows) @ weights).sign() == signs(rows)).float().mean() for rows in (train, test)]
    assert right[0] > 0.65 > right[1]                                        # its own texts it has learned


def test_endings_have_negations_and_late_turns(labelled=sets.labelled):
    """About half of the stories turn late; denials and contrasts are frequent; and these cut both ways."""
    rows = labelled("sentiment", 1000, 5)
    for form, low, high in ((r"All seemed|Everybody thought", 0.4, 0.6), (r"\bnot\b[^.]*\.$", 0.2, 0.5)):
        labels = [row["label"] for row in rows if re.search(form, row["text"])]
        assert low < len(labels) / 1000 < high and 0.4 < labels.count("happy") / len(labels) < 0.6


@pytest.mark.parametrize("domain", sets.DOMAINS)
def test_the_statement_alone_does_not_tell(domain, labelled=sets.labelled):
    """Statements about what some texts leave open have each of the labels, all others both yes and no."""
    seen = Counter()
    for row in labelled("follows", 1200, 6, domain=domain):
        form = next(form for form in (*OPTIONAL, *ALWAYS) if re.fullmatch(form, row["text_pair"])
                    and (form not in OPTIONAL or row["text_pair"].rstrip(".").split()[-1] in OPTIONAL[form]))
        seen[form, row["label"]] += 1
    for form in ALWAYS:
        assert min(seen[form, "yes"], seen[form, "no"]) > 15 and seen[form, "unknown"] == 0
    told = OPTIONAL if domain == "stories" else list(OPTIONAL)[:3]           # food, size, make: never in a letter
    for form in told:
        assert min(seen[form, "yes"], seen[form, "no"]) > (0 if "some" in form else 15), form    # food is rarely told
    assert sum(seen[form, "unknown"] > 15 for form in OPTIONAL) >= 4


# ---- splits, seeds, domains ----


@pytest.mark.parametrize("task", sets.LABELS)
def test_splits_share_nothing(task, monkeypatch, labelled=sets.labelled):
    """Training, validation and test rows, of both domains, have no scene and no text in common."""
    scenes = []
    def spy(*args):
        scenes.append(world.draw_scenes(*args))
        return scenes[-1]
    monkeypatch.setattr(sets, "draw_scenes", spy)
    texts = [row["text"] for split in ("train", "valid", "test") for domain in sets.DOMAINS
             for row in labelled(task, 400, 0, split, domain)]
    assert len(set(texts)) == len(texts) == 2400
    assert len(scenes) == 6 and len({scene for part in scenes for scene in part}) == 2400


def test_all_comes_from_the_seed(labelled=sets.labelled):
    """The same seed gives the same rows, another seed, split, task or domain others; more rows begin with the same."""
    rows = labelled("follows", 20, 3)
    assert rows == labelled("follows", 20, 3)
    others = [labelled("follows", 20, 4), labelled("follows", 20, 3, "test"), labelled("topic", 20, 3),
              labelled("follows", 20, 3, domain="letters")]
    assert not {row["text"] for row in rows} & {row["text"] for other in others for row in other}


def test_letters_have_no_sentence_of_the_stories(labelled=sets.labelled):
    """With names, animals, feelings and so on taken out, no sentence of a letter occurs in a story."""
    kinds = {word: name for name, group in vars(lexicon).items() if name.isupper() for word in group}
    def forms(domain):
        texts = [row["text"] for task in sets.LABELS for row in labelled(task, 300, 7, domain=domain)]
        return {" ".join(kinds.get(word, word) for word in word_list(sentence))
                for text in texts for sentence in re.split(r"(?<=[.?!]) ", text)}
    stories, letters = forms("stories"), forms("letters")
    assert not stories & letters and min(len(stories), len(letters)) > 40


@pytest.mark.parametrize("domain", sets.DOMAINS)
def test_texts_read_well(domain, labelled=sets.labelled):
    """No placeholder is left, sentences begin with capitals and end, and articles fit their words."""
    for row in labelled("follows", 300, 8, domain=domain):
        for text in (row["text"], row["text_pair"]):
            assert not re.search(r"[{}]|  |\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]", text), text
            assert text[0].isupper() and not re.search(r"[.?] [a-z]", text)
        assert row["text_pair"].endswith(".")


def test_what_does_not_exist_is_refused(labelled=sets.labelled):
    """Another task or domain: MiniftError that names those that exist."""
    with pytest.raises(MiniftError, match="'irony'.*sentiment, topic, follows.*stories and letters"):
        labelled("irony", 3, 0)
    with pytest.raises(MiniftError, match="'poems'"):
        labelled("topic", 3, 0, domain="poems")


# ---- text for pretraining ----


def test_statements_are_true_or_false_of_their_story(statements=sets.statements):
    """Below each story stand two statements, each called True or False; a reader of the story agrees."""
    called = Counter()
    for text in statements(300, 0):
        story, *lines = text.split("\n")
        assert len(lines) == 2
        for line in lines:
            statement, verdict = line.rsplit(" ", 1)
            ending = re.fullmatch(r"The story ended (happi|sad)ly\.", statement)
            expected = ({"happi": "happy", "sad": "sad"}[ending[1]] == read_feeling(story) if ending
                        else read_statement(story, statement) == "yes")
            assert verdict == f"{expected}.", (story, line)
            called[verdict] += 1
    assert min(called.values()) > 150


def test_statements_are_not_the_labelled_texts(statements=sets.statements, labelled=sets.labelled):
    """The stories of the pretraining text, its splits, and the labelled sets have no story in common."""
    splits = [{text.split("\n")[0] for text in statements(500, 0, split)} for split in ("train", "valid")]
    told = {row["text"] for task in sets.LABELS for row in labelled(task, 500, 0)}
    assert not splits[0] & splits[1] and not told & (splits[0] | splits[1])
    assert statements(5, 1) == statements(5, 1) != statements(5, 2)
