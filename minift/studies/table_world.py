"""Length bias in a world whose answers can all be listed, with a policy that is a table: every expectation is a sum.

Liu et al. 2025, "Understanding R1-Zero-Like Training", section 3.1: GRPO divides by the length of an answer, so a long
wrong answer is punished less. Left out: several prompts, a policy that shares weights between prefixes.
"""

import itertools
import math
from collections import Counter

import torch
from torch.nn import functional as F

from minift.methods import grpo

# Key -> its name in tables. "true" is the gradient of J itself.
RULES = {
    "true": "the true gradient", "rloo": "RLOO, sum", "reinforce": "REINFORCE, sum",
    "dr_grpo": "Dr. GRPO, 1 / longest allowed", "dapo": "DAPO, 1 / tokens of the batch",
    "grpo": "GRPO, 1 / length of the answer"}


class World:
    """All answers to one prompt (strings of "a", "b" and the end "."), and their rewards.

    logits: (prefixes, 3), a row for each prefix of an answer. mask, and what logprobs gives: (N, T), a row for each
    answer. lengths: (N,), the end counts as a token.
    """

    def __init__(self, answers, rewards):
        self.answers, self.rewards = answers, torch.tensor(rewards, dtype=torch.float64)
        self.lengths = torch.tensor([len(answer) for answer in answers])
        self.longest = int(self.lengths.max())
        self.mask = torch.arange(self.longest) < self.lengths.unsqueeze(1)
        self.prefixes = {}
        self.rows, self.columns = torch.zeros(2, len(answers), self.longest, dtype=torch.long)
        for i, answer in enumerate(answers):
            for t, token in enumerate(answer):
                # A new prefix gets the next row.
                self.rows[i, t] = self.prefixes.setdefault(answer[:t], len(self.prefixes))
                self.columns[i, t] = "ab.".index(token)

    def logprobs(self, logits):
        """The log-probability of each token of each answer, 0 after its end."""
        return torch.where(self.mask, logits.log_softmax(1)[self.rows, self.columns], 0.0)

    def gradient(self, function, logits):
        """d function(logprobs) / d logits: like logits."""
        free = logits.clone().requires_grad_(True)
        return torch.autograd.grad(function(self.logprobs(free)), free)[0]

    def uniform(self):
        """Logits: all tokens are equally likely, but no answer begins with its end."""
        logits = torch.zeros(len(self.prefixes), 3, dtype=torch.float64)
        logits[self.prefixes[""], 2] = -math.inf
        return logits

    def reference(self):
        """Logits of another policy: normal numbers from a fixed seed."""
        generator = torch.Generator().manual_seed(0)
        return self.uniform() + torch.randn(len(self.prefixes), 3, generator=generator, dtype=torch.float64)

    def mean_length(self, logprobs, reward):
        """The expected length, in tokens, of the answers with this reward: a scalar."""
        share = logprobs.sum(1).exp() * (self.rewards == reward)
        return (share * self.lengths).sum() / share.sum()

    def objective(self, logprobs, ref_logprobs, beta):
        """J = E r - beta KL(p || ref), summed over all answers: a scalar."""
        expected = (logprobs.sum(1).exp() * self.rewards).sum()
        return expected - beta * divergence(logprobs, ref_logprobs)


def divergence(logprobs, other_logprobs):
    """KL of one policy to another, summed over all answers: two (N, T) -> a scalar, in nats."""
    return (logprobs.sum(1).exp() * (logprobs - other_logprobs).sum(1)).sum()


def long_world(longest):
    """Answers of up to `longest` tokens, some cut there. An answer is right (1) if its first token is "a", else 0."""
    answers = []
    for n in range(1, longest + 1):
        end = "." if n < longest else ""
        answers += ["".join(tokens) + end for tokens in itertools.product("ab", repeat=n)]
    return World(answers, [float(answer[0] == "a") for answer in answers])


def all_groups(probs, size):
    """Yield (answers, chance) of all groups of `size` answers; their order does not matter. probs: (N,)."""
    for group in itertools.combinations_with_replacement(range(len(probs)), size):
        orders = math.factorial(size) // math.prod(map(math.factorial, Counter(group).values()))
        yield list(group), orders * probs[list(group)].prod().item()


def rule_config(world, method, size, beta=0.0):
    """The settings of one of grpo.METHODS: whole answers have the KL in the reward, the others as k3 in the loss."""
    kl_in = "reward" if method in grpo.WHOLE_ANSWER else "loss"
    return grpo.GRPOConfig(method=method, group_size=size, beta=beta, kl_in=kl_in, max_new_tokens=world.longest)


def expected_update(world, logits, ref_logprobs, config):
    """Minus the gradient of grpo.group_loss, its expectation over all groups of config.group_size: like logits."""
    logprobs = world.logprobs(logits).requires_grad_(True)
    rewards = world.rewards
    if config.kl_in == "reward":
        # As in step 3 of grpo_iteration.
        rewards = rewards - config.beta * (logprobs - ref_logprobs).detach().sum(1)
    # First the expected gradient of each token's log-probability, then, once, that of the logits.
    total = torch.zeros_like(logprobs)
    for group, chance in all_groups(logprobs.detach().sum(1).exp(), config.group_size):
        batch = {
            "old_logprobs": logprobs[group].detach(), "response_mask": world.mask[group],
            "advantages": grpo.group_advantages(rewards[group], config.group_size, config.method, eps=0)}
        loss, _ = grpo.group_loss(logprobs[group], ref_logprobs[group], batch, config)
        total += chance * torch.autograd.grad(loss, logprobs)[0]
    return -world.gradient(lambda logprobs: (logprobs * total).sum(), logits)


def update_of_large_groups(world, logits, config):
    """The limit of expected_update for large groups without a KL, but for its length: like logits.

    The mean reward of a large group is E r. Its standard deviation, and for "dapo" its number of tokens, is the same
    for all answers, so it does not change the direction.
    """
    old = world.logprobs(logits)
    probs, n = old.sum(1).exp(), len(old)
    # Each answer is one row; n times its probability turns the mean over rows into an expectation.
    advantages = n * probs * (world.rewards - (probs * world.rewards).sum())
    batch = {"old_logprobs": old, "response_mask": world.mask, "advantages": advantages}
    return -world.gradient(lambda logprobs: grpo.group_loss(logprobs, None, batch, config)[0], logits)


def compare(mean, true):
    """An expected gradient beside the true one, g.

    {"bias": |E g - g| / |g|, "cosine" (None for a gradient of 0), "scale": the length of E g along g, in units of |g|}.
    """
    length = true.norm().item()
    cosine = None
    if mean.norm() > 1e-12:
        cosine = F.cosine_similarity(mean.flatten(), true.flatten(), dim=0).item()
    scale = (mean * true).sum().item() / length ** 2
    return {"bias": (mean - true).norm().item() / length, "cosine": cosine, "scale": scale}


def judge_rule(name, settings):
    """The expected update of one rule on answers of unequal length, over all groups.

    Returns {"cosine", "cosine_kl": to the gradient of J = E r - beta KL, for beta 0 and the setting's; and the changes
    along a step of length 1 (beta 0) of "wrong", "right": mean lengths, "short", "long": log p of two wrong answers}.
    """
    world = long_world(settings["longest"])
    logits, ref_logprobs = world.uniform(), world.logprobs(world.reference())

    def update(beta):
        true = world.gradient(lambda logprobs: world.objective(logprobs, ref_logprobs, beta), logits)
        if name == "true":
            return true, 1.0
        config = rule_config(world, name, settings["group_size"], beta)
        mean = expected_update(world, logits, ref_logprobs, config)
        return mean, compare(mean, true)["cosine"]

    mean, cosine = update(0.0)
    found = {"cosine": cosine, "cosine_kl": update(settings["beta"])[1]}
    short, long = world.answers.index("b."), world.answers.index("b" * world.longest)
    for key, function in (
            ("wrong", lambda logprobs: world.mean_length(logprobs, 0)),
            ("right", lambda logprobs: world.mean_length(logprobs, 1)),
            ("short", lambda logprobs: logprobs[short].sum()), ("long", lambda logprobs: logprobs[long].sum())):
        slope = world.gradient(function, logits)
        found[key] = ((slope * mean).sum() / mean.norm()).item()
    return found


def follow(method, settings):
    """Follow the expected update of large groups, in equally long steps: a list of {"step", "share", "wrong", "right"}.

    share: the probability of a right answer. wrong, right: mean lengths in tokens.
    """
    world, points = long_world(settings["longest_path"]), []
    logits, config = world.uniform(), rule_config(world, method, len(world.answers))
    for step in range(settings["steps"] + 1):
        logprobs = world.logprobs(logits)
        share = (logprobs.sum(1).exp() * world.rewards).sum()
        wrong, right = world.mean_length(logprobs, 0), world.mean_length(logprobs, 1)
        points.append({"step": step, "share": share.item(), "wrong": wrong.item(), "right": right.item()})
        update = update_of_large_groups(world, logits, config)
        logits = logits + settings["step_length"] * update / update.norm()
    return points
