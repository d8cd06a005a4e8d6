"""A model's sampled answers to prompts: in batches, in the order of the prompts, as ids and as text."""

from dataclasses import dataclass

import torch

from minift.core.generate import generate, left_pad
from minift.text.batches import chunks
from minift.text.chat import encode_prompt


@dataclass(frozen=True)
class Answer:
    """One sampled answer, as ids (for log-probabilities) and as text (for people)."""

    # What was asked: a string, or messages.
    prompt: object
    # The ids of the prompt in the chat template, up to where the answer begins.
    prompt_ids: list
    # The ids that the model wrote, its <eos> included.
    response_ids: list
    # The response without special tokens.
    text: str
    # Whether the model wrote <eos>.
    ended: bool


def make_generator(model, seed):
    """A random number generator on the model's device."""
    return torch.Generator(next(model.parameters()).device).manual_seed(seed)


def generate_batch(
        model, tokenizer, prompts, *, max_new_tokens, temperature=1.0, top_k=None, top_p=None, generator):
    """`generate` for one batch of prompts, which are lists of ids. Returns the Generation."""
    device = next(model.parameters()).device
    return generate(
        model, *left_pad(prompts, tokenizer.pad_id, device), max_new_tokens=max_new_tokens,
        temperature=temperature, top_k=top_k, top_p=top_p, eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id, generator=generator)


def sample_responses(
        model, tokenizer, prompts, *, max_new_tokens, temperature=1.0, batch_size=64, seed=0):
    """The ids that the model writes after each prompt (a list of ids), <eos> included. temperature 0: greedy."""
    generator, responses = make_generator(model, seed), []
    for part in chunks(prompts, batch_size):
        generation = generate_batch(
            model, tokenizer, part, max_new_tokens=max_new_tokens, temperature=temperature,
            generator=generator)
        responses += generation.responses()
    return responses


def sample_answers(
        model, tokenizer, prompts, *, max_new_tokens, temperature=1.0, batch_size=64, seed=0):
    """One sampled Answer to each prompt (a string or messages), through the chat template. temperature 0: greedy."""
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    responses = sample_responses(
        model, tokenizer, encoded, max_new_tokens=max_new_tokens, temperature=temperature,
        batch_size=batch_size, seed=seed)
    answers = []
    for prompt, prompt_ids, response in zip(prompts, encoded, responses):
        text = tokenizer.decode(response, skip_special=True)
        ended = response[-1:] == [tokenizer.eos_id]
        answers.append(Answer(prompt, prompt_ids, response, text, ended))
    return answers
