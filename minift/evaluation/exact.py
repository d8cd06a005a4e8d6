"""A world small enough to enumerate: every answer can be listed, so the optimum of PPO and DPO is known exactly.

All answers of `length` tokens over a vocabulary of `vocab_size`: 8 ** 4 = 4,096 strings by default. The optimum is
eq. 4 of Rafailov et al. 2023, "Direct Preference Optimization"; for best-of-n and its KL see Beirami et al. 2024,
"Theoretical guarantees on the best-of-n alignment policy". Left out: answers of unequal length, several prompts.

`example_reference`, `example_reward` and `sample_choices` make one such world, with choices, for lessons and tests.
A distribution over the N answers is a (N,) float64 tensor of probabilities on the CPU, in the order of `all_answers`.
"""

import math

import torch

from minift.core.heads import LanguageModel
from minift.core.logprobs import eval_mode
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError


def all_answers(vocab_size=8, length=4):
    """Every answer once, the last token changing fastest: (vocab_size ** length, length)."""
    if vocab_size ** length > 2 ** 22:
        raise MiniftError(
            f"{vocab_size} ** {length} answers are too many to enumerate; keep them below 4 million")
    ids = torch.arange(vocab_size)
    return torch.cartesian_prod(*[ids] * length).reshape(-1, length)


@torch.no_grad()
def answer_logprobs(model, prompt, length=4, temperature=1.0, batch_size=1024):
    """log p of every answer of `length` tokens after `prompt` (a list of ids) under a language model: (N,), exact.

    Only the V ** (length - 1) prefixes are run: the logits along a prefix score all answers that begin with it.
    No token ends an answer: generate(..., eos_id=None, max_new_tokens=length) draws from exactly this distribution.
    """
    vocab_size, device = model.config.vocab_size, next(model.parameters()).device
    prefixes = all_answers(vocab_size, length - 1) if length > 1 else torch.zeros(1, 0, dtype=torch.long)
    start = torch.tensor(prompt)  # (T,)
    rows = []
    with eval_mode(model):
        for part in prefixes.split(batch_size):  # (B, length - 1)
            input_ids = torch.cat([start.expand(len(part), -1), part], dim=1).to(device)  # (B, T + length - 1)
            logits = model(input_ids)[:, len(prompt) - 1:].cpu().double() / temperature  # (B, length, V)
            logprobs = logits.log_softmax(-1)
            prefix = logprobs[:, :-1].gather(2, part.unsqueeze(2)).sum((1, 2))  # (B,)
            rows.append(prefix.unsqueeze(1) + logprobs[:, -1])                  # (B, V)
    return torch.cat(rows).reshape(-1)


def optimum(ref_logprobs, rewards, beta):
    """pi* = ref * exp(reward / beta) / Z, the policy with the largest E[reward] - beta * KL(policy || ref): (N,)."""
    if beta <= 0:
        raise MiniftError(f"beta is {beta}; the optimum exists for beta > 0 only")
    return torch.softmax(_exact(ref_logprobs) + _exact(rewards) / beta, dim=0)


def expected_reward(probs, rewards):
    """The sum of p * reward over all answers, a float."""
    return (_exact(probs) * _exact(rewards)).sum().item()


def kl_divergence(probs, other):
    """KL(probs || other) in nats, a float; an answer of probability 0 under `probs` costs nothing."""
    probs, other = _exact(probs), _exact(other)
    return (torch.xlogy(probs, probs) - torch.xlogy(probs, other)).sum().item()


def total_variation(probs, other):
    """Half the sum of |p - q|: the largest difference of any event's probability, from 0 to 1, a float."""
    return 0.5 * (_exact(probs) - _exact(other)).abs().sum().item()


def frontier(ref_logprobs, rewards, betas):
    """The best reward for each KL: no policy lies above these points. A list of {"beta", "kl", "reward"}."""
    ref = _exact(ref_logprobs).exp()
    best = [(beta, optimum(ref_logprobs, rewards, beta)) for beta in betas]
    return [{"beta": beta, "kl": kl_divergence(p, ref), "reward": expected_reward(p, rewards)} for beta, p in best]


def best_of_n(ref_logprobs, rewards, n):
    """The distribution of the best of n answers drawn from ref, ties broken at random: (N,).

    P(best reward = r) = F(r) ** n - F(below r) ** n with F the distribution function of the reward under ref.
    Answers of equal reward share this probability in proportion to ref.
    """
    ref = _exact(ref_logprobs).exp()
    _, level = torch.unique(_exact(rewards), return_inverse=True)  # (N,) equal rewards: one level
    mass = torch.bincount(level, weights=ref)
    below_or_at = mass.cumsum(0) / mass.sum()
    below = torch.cat([torch.zeros(1, dtype=torch.float64), below_or_at[:-1]])
    gain = (below_or_at ** n - below ** n) / mass.clamp(min=torch.finfo(torch.float64).tiny)
    return ref * gain[level]


def best_of_n_kl_bound(n):
    """log n - (n - 1) / n, an upper bound on KL(best of n || ref) for any ref and any reward."""
    return math.log(n) - (n - 1) / n


def preference_probability(rewards, other_rewards):
    """Bradley-Terry: the share of a whole population that prefers the first answer, sigmoid(reward - other reward)."""
    return torch.sigmoid(_exact(rewards) - _exact(other_rewards))


# ---- an example: a reference, a reward, people who choose ----


def example_reference(vocab_size=8, length=4, seed=0):
    """A small random LanguageModel whose answers are far from equally likely."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = TransformerConfig(
            vocab_size, length + 4, n_layer=1, n_head=2, d_model=32, d_ff=64,
            positions="learned")
        model = LanguageModel(config, tie_embeddings=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.0)
    return model


def example_reward(answers):
    """Half a point for each 3, and 1.5 where first and last token are both 4 or more: (N, T) -> (N,)."""
    return (answers == 3).sum(1) * 0.5 + ((answers[:, 0] >= 4) & (answers[:, -1] >= 4)) * 1.5


def sample_choices(answers, ref_logprobs, rewards, n, prompt, seed=0):
    """n pairs of answers drawn from ref, each judged by one person (Bradley-Terry): examples for collate_pairs.

    prompt: a list of ids. An example also has the sums of the reference, ref_chosen_logprobs and ref_rejected_logprobs.
    """
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.multinomial(_exact(ref_logprobs).exp(), 2 * n, True, generator=generator).view(2, n)
    chance = preference_probability(rewards[first], rewards[second])
    wins = torch.rand(n, generator=generator, dtype=torch.float64) < chance
    chosen, rejected = torch.where(wins, first, second), torch.where(wins, second, first)
    return choice_examples(answers, ref_logprobs, chosen, rejected, prompt)


def choice_examples(answers, ref_logprobs, chosen, rejected, prompt):
    """Examples for collate_pairs; chosen, rejected: (n,), which of the answers (N, T) they are."""
    examples = []
    for pair in zip(chosen.tolist(), rejected.tolist()):
        example = {}
        for side, row in zip(("chosen", "rejected"), pair):
            example[f"{side}_input_ids"] = [*prompt, *answers[row].tolist()]
            example[f"{side}_response_mask"] = [False] * len(prompt) + [True] * answers.shape[1]
            example[f"ref_{side}_logprobs"] = ref_logprobs[row].item()
        examples.append(example)
    return examples


def _exact(x):
    """float64 on the CPU (MPS has no float64)."""
    return torch.as_tensor(x).cpu().double()
