"""Sampling: from a batch of left-padded prompts to their continuations and log-probabilities.

Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration" (top-p, section 3.1); Fan et al. 2018 (top-k).
Left out: beam search, repetition penalties, speculative decoding, dropping finished rows from the batch.
"""

import math
from dataclasses import dataclass

import torch

from minift.core.attention import KVCache
from minift.core.decode import make_step
from minift.core.logprobs import eval_mode
from minift.core.settings import check_number, check_whole
from minift.errors import MiniftError


@dataclass(frozen=True)
class Generation:
    """Prompts and what was written after them. The masks, not the ids, say which tokens are real."""

    input_ids: torch.Tensor       # (B, T) prompt, response, then pad_id in rows that finished early
    attention_mask: torch.Tensor  # (B, T) bool, real tokens: prompt and response
    response_mask: torch.Tensor   # (B, T) bool, tokens that the model wrote, its EOS among them
    logprobs: torch.Tensor        # (B, T-1) nats, of each written token (column t - 1 for token t), 0 elsewhere

    def prompts(self):
        """What each row began with, without padding: a list of lists of ids."""
        rows = zip(self.input_ids, self.attention_mask & ~self.response_mask)
        return [ids[given].tolist() for ids, given in rows]

    def responses(self):
        """What the model wrote in each row, its EOS included: a list of lists of ids."""
        return [ids[written].tolist() for ids, written in zip(self.input_ids, self.response_mask)]

    def ended(self, eos_id):
        """(B,) bool: does the response contain eos_id? eos_id=None: nothing ends a response, so all False."""
        if eos_id is None:
            return torch.zeros_like(self.response_mask[:, 0])
        return ((self.input_ids == eos_id) & self.response_mask).any(1)


def left_pad(prompts, pad_id, device=None):
    """Lists of ids -> input_ids and attention_mask, both (B, T). Each row ends with a real token."""
    longest = max(map(len, prompts))
    gaps = [longest - len(prompt) for prompt in prompts]
    input_ids = [[pad_id] * gap + list(prompt) for gap, prompt in zip(gaps, prompts)]
    real = [[False] * gap + [True] * len(prompt) for gap, prompt in zip(gaps, prompts)]
    return torch.tensor(input_ids, dtype=torch.long, device=device), torch.tensor(
        real, dtype=torch.bool, device=device)


@torch.no_grad()
def generate(
        model, input_ids, attention_mask=None, *, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos_id,
        pad_id, generator=None):
    """Sample up to max_new_tokens after each prompt -> Generation; stops early when every row has written eos_id.

    input_ids: (B, T), left-padded. temperature: 0 is greedy. top_k, top_p: keep the k likeliest ids, then the fewest
    that hold p of the probability. eos_id=None: no row stops early. logprobs are those of
    softmax(logits / temperature) before top-k and top-p (greedy: temperature 1), which is what PPO's ratio needs.
    """
    written = list(steps(
        model, input_ids, attention_mask, max_new_tokens, temperature, top_k, top_p, eos_id, generator))
    prompt_mask = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    alive = [alive[:, None] for _, _, alive in written]  # (B, 1) each
    ids = [torch.where(alive, token, pad_id)[:, None] for token, _, alive in written]
    logprobs = [torch.where(alive, logprob, 0)[:, None] for _, logprob, alive in written]
    return Generation(
        input_ids=torch.cat([input_ids, *ids], dim=1),
        attention_mask=torch.cat([prompt_mask, *alive], dim=1),
        response_mask=torch.cat([torch.zeros_like(prompt_mask), *alive], dim=1),
        logprobs=torch.cat([torch.zeros(input_ids[:, 1:].shape, device=input_ids.device), *logprobs], dim=1))


def stream(
        model, input_ids, *, max_new_tokens, temperature=1.0, top_k=None, top_p=None, eos_id=None, generator=None):
    """Yield the ids (int) written after one prompt, (T,) or (1, T), as they come; eos_id, if written, is the last.

    Read it to the end, or close() it: until then the model stays in eval mode.
    """
    prompt = input_ids if input_ids.dim() == 2 else input_ids[None]
    # Bad settings are refused now, not at the first token.
    check(model.config, prompt, None, max_new_tokens, temperature, top_k, top_p)
    if len(prompt) != 1:
        raise MiniftError(
            f"stream writes after one prompt, but got {len(prompt)}; use generate for a batch")
    # Faster than no_grad; safe because no tensor leaves this function.
    fast = torch.inference_mode()(steps)
    written = fast(
        model, prompt, None, max_new_tokens, temperature, top_k, top_p, eos_id, generator)
    return (token.item() for token, _, _ in written)


@torch.no_grad()
def steps(
        model, input_ids, attention_mask, max_new_tokens, temperature, top_k, top_p, eos_id, generator):
    """Yield for each step token (B,), logprob (B,), alive (B,) bool: rows that had not finished before this token.

    The prompts go through the body once. Then each step feeds the newest token, and the cache holds all earlier ones.
    The head is applied to the last position only.
    """
    # Prepare a cache and a mask for the longest result.
    mask = check(
        model.config, input_ids, attention_mask, max_new_tokens, temperature, top_k, top_p)
    B, T = input_ids.shape
    weight = model.body.embed.weight
    cache = KVCache(model.config, B, T + max_new_tokens, weight.device, weight.dtype)
    if mask is not None:
        # Each step takes a slice of the mask; new tokens are real.
        mask = torch.cat((mask, mask.new_ones(B, max_new_tokens)), dim=1)
    # Sample one token in each row, until all rows have finished.
    alive = torch.ones(B, dtype=torch.bool, device=input_ids.device)
    token = input_ids
    with eval_mode(model):
        step = make_step(model.body, T + max_new_tokens)
        for end in range(T, T + max_new_tokens):
            seen = None if mask is None else mask[:, :end]
            hidden = model.body(token, seen, cache=cache) if end == T else step(token, seen, cache)
            token, logprob = sample(
                model.head(hidden[:, -1]), temperature, top_k, top_p, generator)
            yield token, logprob, alive
            if eos_id is not None:
                alive = alive & (token != eos_id)
                if not alive.any():
                    return
            token = token[:, None]  # (B, 1)


def sample(logits, temperature, top_k, top_p, generator):
    """One id and its log-probability (nats) for each row of logits (B, V): (B,), (B,)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logprobs = (logits / temperature if temperature else logits).log_softmax(-1)  # (B, V)
    # log_softmax spreads a NaN or an infinity over its whole row.
    if logprobs[:, 0].isnan().any():
        raise MiniftError(
            "the model's logits are not finite; its weights or the training that made them are broken")
    if temperature == 0:
        token = logprobs.argmax(-1)
    else:
        probs = keep_likely(logprobs, top_k, top_p).softmax(-1)
        token = draw(probs, generator)
    return token, logprobs.gather(-1, token[:, None])[:, 0]


def draw(probs, generator):
    """One id for each row of probs (B, V) by inverting the cumulative sum: one random number per row, not V."""
    where = probs.device if generator is None else generator.device
    # A random number in [0, 1).
    point = torch.rand(len(probs), 1, generator=generator, device=where).to(probs.device)
    cumulative = probs.cumsum(-1)  # (B, V)
    # The first id whose cumulative sum is above the point.
    token = torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True)
    return token[:, 0].clamp(max=probs.shape[1] - 1)


def keep_likely(logprobs, top_k, top_p):
    """(B, V) -> the same, but -inf outside the top_k likeliest ids, and outside the fewest of these that hold top_p."""
    V = logprobs.shape[-1]
    top_k = V if top_k is None else min(top_k, V)
    top_p = 1.0 if top_p is None else top_p
    if top_k == V and top_p == 1:
        return logprobs
    ranked, order = logprobs.sort(descending=True, stable=True)  # (B, V) ties: the smaller id first
    ranked[:, top_k:] = -math.inf
    if top_p < 1:
        probs = ranked.softmax(-1)
        # The ids before this one hold enough probability.
        ranked = ranked.masked_fill(probs.cumsum(-1) - probs >= top_p, -math.inf)
    return torch.full_like(logprobs, -math.inf).scatter(-1, order, ranked)


def check(config, input_ids, attention_mask, max_new_tokens, temperature, top_k, top_p):
    """MiniftError for settings that cannot work. Returns the mask as bool, or None if nothing is padded."""
    # The prompts, and each setting alone.
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise MiniftError(
            f"prompts must be ids of shape (B, T) with B, T >= 1; got shape {tuple(input_ids.shape)}")
    check_whole("max_new_tokens", max_new_tokens, least=0)
    check_number("temperature", temperature, least=0)
    if top_k is not None:
        check_whole("top_k", top_k, least=1)
    if top_p is not None:
        check_number("top_p", top_p, above=0, most=1)
    # Prompt and answer together must fit into the context.
    if input_ids.shape[1] + max_new_tokens > config.context_length:
        raise MiniftError(
            f"prompt of {input_ids.shape[1]} + max_new_tokens {max_new_tokens} is beyond the context of "
            f"{config.context_length} tokens; shorten one of them")
    # Every row must end with a real token: the next one is sampled after it.
    if attention_mask is None:
        return None
    mask = attention_mask.bool()
    if mask.shape != input_ids.shape:
        raise MiniftError(
            f"attention_mask has shape {tuple(mask.shape)}; expected {tuple(input_ids.shape)}")
    padded = (~mask[:, -1]).nonzero()
    if len(padded):
        raise MiniftError(f"row {int(padded[0])} ends with padding; prompts must be padded on the left")
    return None if mask.all() else mask
