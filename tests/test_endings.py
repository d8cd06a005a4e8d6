"""Open stories and the taste for happy endings: what a beginning tells, which ends count, which pairs are made."""

import torch

from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.text.tokenizer import Tokenizer
from minift.world import endings
from minift.world.corpus import stories
from minift.world.rubric import ROLES, sentences, skeleton

TOKENIZER = Tokenizer.train(["the bird sang and the fox ran"] * 3, 280)


def roles(text):
    return [ROLES.get(skeleton(part)) for part in sentences(text)]


def small_model():
    torch.manual_seed(0)
    return LanguageModel(TransformerConfig(TOKENIZER.vocab_size, 64, n_layer=1, n_head=2, d_model=16, d_ff=16)).eval()


def test_a_beginning_stops_at_the_trouble(open_stories=endings.open_stories):
    """Each beginning opens its story, and its last sentence, no other one, tells the trouble: the end is open."""
    for beginning, story in zip(open_stories(30, 3), stories(30, 3), strict=True):
        told = roles(beginning)
        assert story.startswith(beginning) and told[-1] == "trouble" and told.count("trouble") == 1
        assert not {"good turn", "bad turn", "happy", "sad"} & set(told)


def test_the_last_sentence_of_the_first_line_counts(ends_happily=endings.ends_happily):
    """Of whole stories the end as written counts; not a happy sentence before it, nor what stands on a later line."""
    told = stories(60, 5)
    assert [ends_happily(story) for story in told] == [float(roles(story)[-1] == "happy") for story in told]
    happy = next(sentences(story)[-1] for story in told if roles(story)[-1] == "happy")
    sad = next(sentences(story)[-1] for story in told if roles(story)[-1] == "sad")
    assert ends_happily(f"{sad} {happy}\n{sad}") == 1 and ends_happily(f"{happy} {sad}\n{happy}") == 0
    assert ends_happily(happy[:-1]) == ends_happily("") == ends_happily(f"\n{happy}") == 0


def test_endings_are_what_the_model_wrote(sample_endings=endings.sample_endings):
    """One answer a beginning, in order: its prompt's ids, the ids behind them, their text; the seed decides."""
    model, beginnings = small_model(), ["the bird", "the fox ran and the bird", "fox"]
    written = sample_endings(model, TOKENIZER, beginnings, max_new_tokens=7, seed=1)
    assert [answer["prompt_ids"] for answer in written] == [TOKENIZER.encode(text) for text in beginnings]
    for answer in written:
        ids = answer["response_ids"]
        assert 1 <= len(ids) <= 7 and TOKENIZER.eos_id not in ids[:-1]
        assert answer["text"] == TOKENIZER.decode(ids, skip_special=True)
    assert written == sample_endings(model, TOKENIZER, beginnings, max_new_tokens=7, seed=1)
    assert written != sample_endings(model, TOKENIZER, beginnings, max_new_tokens=7, seed=2)


def test_the_happy_ending_of_two_is_chosen(monkeypatch, ending_pairs=endings.ending_pairs):
    """Of two endings the happy one is chosen, whichever came first; two alike make no pair; the mask is the answer."""
    ends = {True: " merry", False: " gloomy"}
    drawn = [True, False, False, True, True, True, False, False]
    beginnings = ["bird", "the fox", "the bird and", "ran"]
    monkeypatch.setattr(endings, "ends_happily", lambda text: float(text == ends[True]))
    monkeypatch.setattr(endings, "sample_endings", lambda model, tokenizer, texts, **settings: [
        {"prompt_ids": TOKENIZER.encode(text), "response_ids": TOKENIZER.encode(ends[happy]), "text": ends[happy]}
        for text, happy in zip(texts, drawn, strict=True)])
    pairs = ending_pairs(None, TOKENIZER, beginnings)
    assert [pair["beginning"] for pair in pairs] == beginnings[:2]
    for pair in pairs:
        for side, end in (("chosen", ends[True]), ("rejected", ends[False])):
            mask, ids = pair[f"{side}_response_mask"], pair[f"{side}_input_ids"]
            assert pair[side] == end and ids == TOKENIZER.encode(pair["beginning"]) + TOKENIZER.encode(end)
            assert mask == [i >= len(TOKENIZER.encode(pair["beginning"])) for i in range(len(ids))]
