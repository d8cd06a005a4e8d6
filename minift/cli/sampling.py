"""Answer many prompts in batches, in the order of the prompts; or stream the text of one answer."""

import codecs

import torch

from minift.core.generate import stream
from minift.errors import MiniftError
from minift.text.answers import generate_batch, make_generator
from minift.text.batches import chunks

# Tokens, when --max-new-tokens does not say.
LONGEST_ANSWER = 128


def room_to_answer(model, prompt, max_new_tokens, where="the prompt"):
    """How many tokens may be written after a prompt (ids). MiniftError if none, or fewer than asked for."""
    context, length = model.config.context_length, len(prompt)
    if length == 0:
        raise MiniftError(f"{where}: the prompt is empty, so there is nothing to go on from; give it a text")
    if context - length < (max_new_tokens or 1):
        mend = "shorten it or lower --max-new-tokens" if max_new_tokens else "shorten it"
        raise MiniftError(
            f"{where}: the prompt has {length} tokens, which leaves {max(context - length, 0)} of the "
            f"context of {context} to the answer; {mend}")
    return max_new_tokens or min(LONGEST_ANSWER, context - length)


def write_answers(
        model, tokenizer, prompts, *, max_new_tokens=None, temperature=1.0, top_k=None, top_p=None, seed=0,
        batch_size=32):
    """The ids written after each prompt (a list of ids), <eos> included, in the prompts' order.

    Prompts of similar length share a batch. max_new_tokens=None: LONGEST_ANSWER, or what the context has room for.
    """
    generator, answers = make_generator(model, seed), {}
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for part in chunks(by_length, batch_size):
        rows = [prompts[i] for i in part]
        room = room_to_answer(model, rows[-1], max_new_tokens)
        generation = generate_batch(
            model, tokenizer, rows, max_new_tokens=room, temperature=temperature, top_k=top_k,
            top_p=top_p, generator=generator)
        answers |= dict(zip(part, generation.responses()))
    return [answers[i] for i in range(len(prompts))]


def continuation(model, tokenizer, prompt, n, seed):
    """A prompt (ids) and what the model writes after it, as one text with a mark between the two."""
    n = min(n, model.config.context_length - len(prompt))
    answer, = write_answers(model, tokenizer, [prompt], max_new_tokens=n, temperature=0.8, seed=seed)
    return f"{tokenizer.decode(prompt)}>>>{tokenizer.decode(answer, skip_special=True)}"


def stream_text(model, tokenizer, prompt, *, max_new_tokens, temperature, top_k, top_p, generator):
    """Yield the answer to a prompt (ids) piece by piece, in whole characters; a token may end inside a character."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    special = set(tokenizer.special.values())
    prompt = torch.tensor(prompt, device=next(model.parameters()).device)
    for token in stream(
            model, prompt, max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
            eos_id=tokenizer.eos_id, generator=generator):
        if token not in special:
            yield decoder.decode(tokenizer.token_bytes(token))
    yield decoder.decode(b"", final=True)
