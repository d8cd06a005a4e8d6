"""Preference pairs as ids: the template, what is cut when there is no room, and the padded batch."""

import warnings

import pytest
import torch

from minift.errors import MiniftError
from minift.text import pairs
from minift.text.chat import encode_chat
from minift.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["a fox and a kite"], 264)      # bytes and special tokens: one token a letter
SYSTEM, USER, ASSISTANT, EOS = (TOKENIZER.special_id(f"<{name}>") for name in ("system", "user", "assistant", "eos"))


def ids(text):
    return TOKENIZER.encode(text)


def test_a_pair_is_two_chats(encode_pair=pairs.encode_pair):
    """Each side is what encode_chat makes of prompt and answer: the same ids, the answer and its <eos> in the mask."""
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi <eos>"}]
    example = encode_pair(TOKENIZER, prompt, "yes, you", "no", 100)
    for side, text in (("chosen", "yes, you"), ("rejected", "no")):
        expected = encode_chat(TOKENIZER, [*prompt, {"role": "assistant", "content": text}])
        assert (example[f"{side}_input_ids"], example[f"{side}_response_mask"]) == expected
    assert example["n_cut"] == 0
    short = encode_pair(TOKENIZER, "Hi", "a", "b", 100)
    assert short["chosen_input_ids"] == [USER, *ids("Hi"), ASSISTANT, *ids("a"), EOS]


def test_a_long_prompt_loses_its_oldest_text(encode_pair=pairs.encode_pair):
    """A prompt that does not fit is cut on the left, alike for both; control tokens and answers stay whole."""
    example = encode_pair(TOKENIZER, "0123456789", "abc", "d", 10)
    assert example["chosen_input_ids"] == [USER, *ids("6789"), ASSISTANT, *ids("abc"), EOS]
    assert example["rejected_input_ids"] == [USER, *ids("6789"), ASSISTANT, *ids("d"), EOS]
    assert example["chosen_response_mask"] == [False] * 6 + [True] * 4
    assert example["n_cut"] == 6
    prompt = [{"role": "system", "content": "xyz"}, {"role": "user", "content": "uv"}]
    example = encode_pair(TOKENIZER, prompt, "a", "b", 6)
    assert example["chosen_input_ids"] == [SYSTEM, USER, *ids("v"), ASSISTANT, *ids("a"), EOS]


def test_it_fits_exactly_or_is_cut_by_what_is_too_much(encode_pair=pairs.encode_pair):
    """Over all context lengths: no row is longer, rows are full when something was cut, and nothing is cut in vain."""
    whole = encode_pair(TOKENIZER, "prompt", "chosen", "rejected", 100)
    longest = len(whole["rejected_input_ids"])
    for context_length in range(3, longest + 3):
        example = encode_pair(TOKENIZER, "prompt", "chosen", "rejected", context_length)
        longer = max(len(example["chosen_input_ids"]), len(example["rejected_input_ids"]))
        assert longer == min(context_length, longest)
        assert (example["n_cut"] > 0) == (context_length < longest)
        assert [i for i in example["chosen_input_ids"][:-1] if i in (USER, ASSISTANT)] == [USER, ASSISTANT]


def test_an_answer_that_does_not_fit_loses_its_end(encode_pair=pairs.encode_pair):
    """When even the bare template leaves no room, answers are cut on the right and have no <eos>."""
    example = encode_pair(TOKENIZER, "pq", "abcdef", "xy", 5)
    assert example["chosen_input_ids"] == [USER, ASSISTANT, *ids("abc")]
    assert example["rejected_input_ids"] == [USER, ASSISTANT, *ids("xy"), EOS]
    assert example["n_cut"] == 2 + 4
    with pytest.raises(MiniftError, match="context_length"):
        encode_pair(TOKENIZER, "pq", "abc", "def", 2)


def test_pairs_that_are_alike_are_dropped_and_counted(encode_pairs=pairs.encode_pairs):
    """Chosen equal to rejected, if only after cutting, is dropped with a warning; all dropped is an error."""
    rows = [{"prompt": "p", "chosen": c, "rejected": r} for c, r in (("a", "b"), ("a", "a"), ("abcdX", "abcdY"))]
    with pytest.warns(UserWarning, match="of 3 pairs, 2 were dropped .* and 1 were shortened"):
        examples = encode_pairs(TOKENIZER, rows, 4)
    assert len(examples) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(encode_pairs(TOKENIZER, rows[:1] + rows[2:], 50)) == 2
    with pytest.raises(MiniftError, match="no pair to learn from"):
        encode_pairs(TOKENIZER, rows[1:2], 50)
    with pytest.raises(MiniftError, match="pair 1: "):
        encode_pairs(TOKENIZER, [rows[0], {"prompt": "p", "chosen": "a", "rejected": None}], 50)


def example(chosen, rejected, **more):
    return {"chosen_input_ids": chosen, "chosen_response_mask": [False] + [True] * (len(chosen) - 1),
            "rejected_input_ids": rejected, "rejected_response_mask": [False] + [True] * (len(rejected) - 1), **more}


def test_the_batch_is_padded_on_the_right(collate_pairs=pairs.collate_pairs):
    """All six tensors have the width of the longest row; masks follow lengths, so a real pad id stays real."""
    batch = collate_pairs([example([1, 2, 9], [1, 3]), example([9, 9], [4, 5, 6, 7])], 9)
    assert batch["chosen_input_ids"].tolist() == [[1, 2, 9, 9], [9, 9, 9, 9]]
    assert batch["chosen_attention_mask"].tolist() == [[True, True, True, False], [True, True, False, False]]
    assert batch["chosen_response_mask"].tolist() == [[False, True, True, False], [False, True, False, False]]
    assert batch["rejected_input_ids"].tolist() == [[1, 3, 9, 9], [4, 5, 6, 7]]
    assert batch["rejected_attention_mask"].sum(1).tolist() == [2, 4]
    assert batch["rejected_response_mask"].sum(1).tolist() == [1, 3]
    assert set(batch) == {f"{side}_{name}" for side in ("chosen", "rejected")
                          for name in ("input_ids", "attention_mask", "response_mask")}
    assert batch["chosen_attention_mask"].dtype == batch["chosen_response_mask"].dtype == torch.bool


def test_reference_sums_come_along(collate_pairs=pairs.collate_pairs):
    """ref_chosen_logprobs and ref_rejected_logprobs become (B,) tensors; only some pairs having them is an error."""
    done = example([1, 2], [1, 3], ref_chosen_logprobs=-1.5, ref_rejected_logprobs=-2.5)
    batch = collate_pairs([done, done], 0)
    assert batch["ref_chosen_logprobs"].tolist() == [-1.5, -1.5]
    assert batch["ref_rejected_logprobs"].tolist() == [-2.5, -2.5]
    with pytest.raises(MiniftError, match="1 of 2"):
        collate_pairs([done, example([1, 2], [1, 3])], 0)


def test_a_mask_of_another_length(collate_pairs=pairs.collate_pairs):
    """Ids and mask of different lengths are refused, naming the pair."""
    wrong = example([1, 2], [1, 3])
    wrong["rejected_response_mask"].append(True)
    with pytest.raises(MiniftError, match="pair 1"):
        collate_pairs([example([1, 2], [1, 3]), wrong], 0)
