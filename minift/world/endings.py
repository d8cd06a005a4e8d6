"""A preference that needs no instructions: beginnings of stories, and a reader who prefers a happy ending.

The task of Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", section 3.1.1: continue a text in
a certain mood. A plain language model is enough for it, so lessons on preferences can start with the base model. Left
out: whether the ending fits its story (`world.rubric` judges whole stories), readers who make mistakes.
"""

from minift.text.answers import sample_responses
from minift.world.corpus import stories
from minift.world.rubric import role_of, sentences


def open_stories(n, seed, split="train"):
    """n stories, each up to the sentence that says what goes wrong: good and bad endings are still equally likely."""
    beginnings = []
    for story in stories(n, seed, split):
        parts = sentences(story)
        roles = [role_of(part) for part in parts]
        trouble = roles.index("trouble")
        beginnings.append(" ".join(parts[:trouble + 1]))
    return beginnings


def ends_happily(ending):
    """1.0 if the last sentence of the text's first line is one of the world's happy endings, else 0.0."""
    first_line = ending.split("\n")[0]
    parts = sentences(first_line)
    return 1.0 if parts and role_of(parts[-1]) == "happy" else 0.0


def sample_endings(model, tokenizer, beginnings, *, max_new_tokens=48, seed=0, batch_size=64):
    """What the model writes after each beginning, at temperature 1: dicts of prompt_ids, response_ids, text."""
    prompts = [tokenizer.encode(text) for text in beginnings]
    responses = sample_responses(
        model, tokenizer, prompts,
        max_new_tokens=max_new_tokens, batch_size=batch_size, seed=seed)
    return [
        {
            "prompt_ids": prompt,
            "response_ids": response,
            "text": tokenizer.decode(response, skip_special=True)}
        for prompt, response in zip(prompts, responses)]


def ending_pairs(model, tokenizer, beginnings, *, max_new_tokens=48, seed=0):
    """Pairs for collate_pairs: the happy ending of a story is chosen, the other one rejected.

    Two endings are sampled for each beginning; if both are happy or neither is, they make no pair. An example also has
    its three texts: beginning, chosen, rejected.
    """
    doubled = []
    for text in beginnings:
        doubled += [text, text]
    endings = sample_endings(
        model, tokenizer, doubled, max_new_tokens=max_new_tokens, seed=seed)
    examples = []
    for beginning, a, b in zip(beginnings, endings[::2], endings[1::2]):
        a_happy, b_happy = ends_happily(a["text"]), ends_happily(b["text"])
        if a_happy == b_happy:
            continue
        chosen, rejected = (a, b) if a_happy else (b, a)
        example = {
            "beginning": beginning,
            **pair_side("chosen", chosen),
            **pair_side("rejected", rejected)}
        examples.append(example)
    return examples


def pair_side(side, ending):
    """The fields of one side of a pair: its text, its ids, and which of them the model wrote."""
    prompt, response = ending["prompt_ids"], ending["response_ids"]
    mask = [False] * len(prompt) + [True] * len(response)
    return {
        f"{side}_input_ids": prompt + response,
        f"{side}_response_mask": mask,
        side: ending["text"]}
