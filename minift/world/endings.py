"""A taste that needs no instructions: stories whose end is open, and a reader who likes them to end well.

The task of Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 3.1.1: continue a text in
a certain mood. A plain language model is enough for it, so lessons on preferences can begin at the base. Left out:
whether the ending fits its story (`world.rubric` judges whole stories), readers who err.
"""

from minift.text.answers import sample_responses
from minift.world.corpus import stories
from minift.world.rubric import ROLES, sentences, skeleton


def open_stories(n, seed, split="train"):
    """n stories up to the sentence that tells the trouble: good and bad endings are still equally likely."""
    beginnings = []
    for story in stories(n, seed, split):
        parts = sentences(story)
        trouble = [ROLES.get(skeleton(part)) for part in parts].index("trouble")
        beginnings.append(" ".join(parts[:trouble + 1]))
    return beginnings


def ends_happily(ending):
    """1.0 if the last sentence of the text's first line is one of the world's happy endings, else 0.0."""
    last = sentences(ending.split("\n")[0])[-1:]
    return float(bool(last) and ROLES.get(skeleton(last[0])) == "happy")


def sample_endings(model, tokenizer, beginnings, *, max_new_tokens=48, seed=0, batch_size=64):
    """What the model writes after each beginning, at temperature 1: dicts of prompt_ids, response_ids, text."""
    prompts = [tokenizer.encode(text) for text in beginnings]
    responses = sample_responses(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size,
                                 seed=seed)
    return [{"prompt_ids": prompt, "response_ids": response, "text": tokenizer.decode(response, skip_special=True)}
            for prompt, response in zip(prompts, responses)]


def ending_pairs(model, tokenizer, beginnings, *, max_new_tokens=48, seed=0):
    """Pairs for collate_pairs: two endings of each story, the happy one chosen; where both are alike there is none.

    An example also has its three texts: beginning, chosen, rejected.
    """
    doubled = [text for text in beginnings for _ in range(2)]
    written = sample_endings(model, tokenizer, doubled, max_new_tokens=max_new_tokens, seed=seed)
    examples = []
    for beginning, *pair in zip(beginnings, written[::2], written[1::2]):
        rejected, chosen = sorted(pair, key=lambda answer: ends_happily(answer["text"]))
        if ends_happily(chosen["text"]) == ends_happily(rejected["text"]):
            continue
        example = {"beginning": beginning}
        for side, answer in (("chosen", chosen), ("rejected", rejected)):
            prompt_ids, response_ids = answer["prompt_ids"], answer["response_ids"]
            example[f"{side}_input_ids"] = prompt_ids + response_ids
            example[f"{side}_response_mask"] = [False] * len(prompt_ids) + [True] * len(response_ids)
            example[side] = answer["text"]
        examples.append(example)
    return examples
