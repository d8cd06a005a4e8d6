"""A world in which a reward model has a flaw: it cannot see the repeats that the gold score punishes.

All answers of 6 tokens over a vocabulary of 6: 46,656, so that every expectation is an exact sum. The reference seldom
repeats a token, so its answers hardly show the flaw; under optimisation it decides. Scores are in standard deviations
of the gold score under the reference, with mean 0. Left out: answers of unequal length.
"""

import torch
from torch.nn import functional as F

from minift.core.heads import LanguageModel
from minift.core.transformer import TransformerConfig
from minift.evaluation import exact
from minift.studies.exact_runs import PROMPT

VOCAB, LENGTH = 6, 6


class World:
    """One seed's reference, gold score and preferences.

    penalty: gold points that an immediate repeat costs. noise: the share of wrong choices. pairs: how many there are.
    """

    def __init__(self, seed, penalty=2.0, noise=0.25, pairs=1000):
        self.seed, generator = seed, torch.Generator().manual_seed(seed)
        self.answers = exact.all_answers(VOCAB, LENGTH)  # (N, 6)
        # In float64, so that no drawn pair depends on the processor; the policies that learn from it are float32.
        bigram = torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64) - 3.0 * torch.eye(VOCAB)
        self.model = make_bigram_model(bigram, seed)
        self.ref_logprobs = exact.answer_logprobs(self.model, PROMPT, LENGTH)  # (N,)
        self.ref = self.ref_logprobs.exp()
        self.model = self.model.float()
        # Gold: a value for each token, less the penalty for each repeat.
        self.counts = F.one_hot(self.answers, VOCAB).sum(1).double()  # (N, 6)
        self.repeats = (self.answers[:, 1:] == self.answers[:, :-1]).sum(1).double()  # (N,)
        values = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
        self.gold = self.standardise(self.counts @ values - penalty * self.repeats)
        # Choices between answers of the reference; a share of them is wrong.
        first, second = torch.multinomial(self.ref, 2 * pairs, True, generator=generator).view(2, pairs)
        better = self.gold[first] >= self.gold[second]
        wins = better ^ (torch.rand(pairs, generator=generator) < noise)
        self.chosen, self.rejected = torch.where(wins, first, second), torch.where(wins, second, first)

    def standardise(self, scores):
        """The same scores with mean 0 and standard deviation 1 under the reference."""
        mean = (self.ref * scores).sum()
        return (scores - mean) / (self.ref * (scores - mean).square()).sum().sqrt()

    def learn(self, see_repeats=False, rows=None):
        """A reward model: linear in the token counts (and the repeats), the maximum of the Bradley-Terry likelihood.

        rows: which of the pairs to learn from; None: all. Returns standardised scores (N,).
        """
        features = self.counts[:, 1:]  # the counts sum to 6, so one of them says nothing new
        if see_repeats:
            features = torch.cat([features, self.repeats.unsqueeze(1)], 1)
        gaps = features[self.chosen] - features[self.rejected]  # (pairs, features)
        if rows is not None:
            gaps = gaps[rows]
        return self.standardise(features @ fit_bradley_terry(gaps))

    def learn_ensemble(self, n):
        """n reward models, each on a bootstrap of the pairs: (n, N)."""
        generator, size = torch.Generator().manual_seed(self.seed + 1), len(self.chosen)
        return torch.stack([self.learn(rows=torch.randint(size, (size,), generator=generator)) for _ in range(n)])

    def judge(self, probs, learned):
        """{"root_kl", "gold", "learned"} of a distribution over all answers, exactly."""
        kl = max(exact.kl_divergence(probs, self.ref), 0.0)
        return {
            "root_kl": kl ** 0.5, "gold": exact.expected_reward(probs, self.gold),
            "learned": exact.expected_reward(probs, learned)}


def make_bigram_model(bigram, seed):
    """A small LanguageModel in which softmax(bigram[t]) follows the token t; bigram: (V, V), logits.

    It is built, not trained, so that it does not depend on the number of threads. A token's vector has a 1 at its own
    place, from which the head reads the token's row. Layers and positions add 0 at first, and can learn.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = TransformerConfig(VOCAB, LENGTH + 2, n_layer=1, n_head=2, d_model=32, d_ff=64, positions="learned")
        model = LanguageModel(config, tie_embeddings=False).double().eval()
    body, layer = model.body, model.body.layers[0]
    with torch.no_grad():
        for module in (body.positions, layer.attn.o_proj, layer.mlp.down_proj, model.head):
            module.weight.zero_()
        body.embed.weight.copy_(torch.eye(VOCAB, config.d_model))
        scale = body.norm(body.embed.weight)[0, 0]
        model.head.weight[:, :VOCAB] = bigram.T / scale
    return model


def fit_bradley_terry(gaps, steps=50):
    """The weights w (features,) that maximise the sum of log sigmoid(gaps @ w), by Newton's method in float64.

    gaps: (pairs, features), features of the chosen answer minus those of the rejected one. A ridge of 1e-6 keeps the
    weights finite where the pairs can be separated.
    """
    weights = torch.zeros(gaps.shape[1], dtype=torch.float64)
    ridge = 1e-6 * torch.eye(gaps.shape[1], dtype=torch.float64)
    for _ in range(steps):
        wrong = torch.sigmoid(-gaps @ weights)  # (pairs,)
        gradient = gaps.T @ wrong - ridge @ weights
        curvature = gaps.T @ (gaps * (wrong * (1 - wrong)).unsqueeze(1)) + ridge
        weights = weights + torch.linalg.solve(curvature, gradient)
    return weights
