"""The reward model: a score for each answer, learned from which of two answers people preferred.

Ouyang et al. 2022, "Training language models to follow instructions with human feedback", eq. 1; the probability
model of a choice: Bradley & Terry 1952. A reward model is a `TokenScorer` read at the last real token. Left out: K-wise
rankings (average the loss over their pairs), ensembles.
"""

import torch
from torch.nn import functional as F

from minift.core.logprobs import eval_mode
from minift.core.resume import move_batch
from minift.errors import MiniftError


def bradley_terry_loss(chosen_scores, rejected_scores, margin=0.0):
    """-log sigmoid(chosen - rejected - margin), the mean over pairs: log 2 when the scores tie.

    chosen_scores, rejected_scores: (B,). margin: by how much chosen must win (Llama 2, eq. 2), a float or (B,).
    Only differences count: adding a constant to all scores changes nothing. Returns a scalar.
    """
    return -F.logsigmoid(chosen_scores - rejected_scores - margin).mean()


def make_reward_loss(model):
    """A loss_fn(batch) -> (loss, metrics) for train(): `model` is a TokenScorer, `batch` comes from collate_pairs.

    Chosen and rejected answers share one forward pass. A batch may hold a "margin" (B,). metrics: accuracy (chosen
    strictly above rejected), ties (share of equal scores), margin (mean difference of the scores), n_tokens (pairs).
    """
    def loss_fn(batch):
        input_ids = torch.cat([batch["chosen_input_ids"], batch["rejected_input_ids"]])  # (2B, T)
        attention_mask = torch.cat([batch["chosen_attention_mask"], batch["rejected_attention_mask"]])  # (2B, T)
        chosen, rejected = model.last_scores(input_ids, attention_mask).chunk(2)  # (B,) each
        loss = bradley_terry_loss(chosen, rejected, batch.get("margin", 0.0))
        metrics = {
            "accuracy": (chosen > rejected).float().mean().item(),
            "ties": (chosen == rejected).float().mean().item(), "margin": (chosen - rejected).mean().item(),
            "n_tokens": len(chosen)}
        return loss, metrics
    return loss_fn


@torch.no_grad()
def score_pairs(model, batches):
    """Yield (chosen scores, rejected scores), (B,) each, for the batches of collate_pairs; in eval mode."""
    device = next(model.parameters()).device
    with eval_mode(model):
        for batch in batches:
            batch = move_batch(batch, device)
            yield tuple(
                model.last_scores(batch[f"{side}_input_ids"], batch[f"{side}_attention_mask"])
                for side in ("chosen", "rejected"))


@torch.no_grad()
def normalise_scores(model, scores):
    """Fold (score - mean) / std into the score head, so that `scores` themselves would come out with mean 0 and std 1.

    scores: (N,), what `model` (a TokenScorer) gave to sample answers; std divides by N. With mean 2 and std 4,
    the weight is multiplied by 0.25 and a bias of 0 becomes -0.5. Preferences fix neither the zero nor the unit of a
    reward, but the right beta of PPO depends on the unit.
    """
    scores = torch.as_tensor(scores).float()
    if not torch.isfinite(scores).all() or len(scores.unique()) < 2:
        raise MiniftError(
            "scores must be finite and not all equal to be normalised; give the scores of more answers")
    mean, std = scores.mean(), scores.std(unbiased=False)
    model.score.weight.div_(std)
    model.score.bias.sub_(mean).div_(std)


def reward_from_model(model):
    """A reward_fn(generation) -> (B,) for train_ppo: the reward model's scores, without gradient, in eval mode.

    The ids of prompt and response go to the model as they are: it must share the policy's tokenizer.
    """
    @torch.no_grad()
    def reward_fn(generation):
        with eval_mode(model):
            return model.last_scores(generation.input_ids, generation.attention_mask)  # (B,)
    return reward_fn
