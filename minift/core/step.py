"""The parts of an optimizer step: the learning rate, the optimizer, the gradient's reduction, the means of metrics.

AdamW: Loshchilov and Hutter 2019, algorithm 2. Cosine decay: Loshchilov and Hutter 2017, eq. 5. Clipping by the global
norm: Pascanu et al. 2013, algorithm 1. Left out: gradient scaling for float16 (bfloat16 needs none), several processes.
"""

import math

import torch

from minift.errors import MiniftError

NO_GRADIENT = "no trainable parameter received a gradient: the loss does not depend on what is being trained"
REMEDY = "lower the learning rate, warm up for longer, or look for bad values in this batch"


def learning_rate(step, *, lr, steps, warmup, min_lr):
    """Linear from 0 at step 0 to `lr` at step `warmup`, then half a cosine to `min_lr` at step `steps`, then constant.

    The loop counts its steps from 1, so that no step is taken with a learning rate of 0.
    """
    if step < warmup:
        return lr * step / warmup
    if step >= steps:
        return min_lr
    progress = (step - warmup) / (steps - warmup)
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * progress))


def make_optimizer(model, *, lr, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8):
    """AdamW over the parameters with requires_grad; weight decay on matrices only, not on norms and biases.

    A frozen parameter is not given to AdamW, which would decay it even with a gradient of zero.
    Raises MiniftError when nothing is trainable.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise MiniftError(
            "nothing to train: every parameter has requires_grad=False; unfreeze some, or add LoRA")
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0}]
    # One kernel for the whole update.
    fused = all(p.device.type in ("cpu", "cuda") for p in trainable)
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=fused)


def reduce_gradients(optimizer, n_tokens, clip):
    """Turn gradients summed over tokens into those of the mean over all tokens, and clip them. Returns their norm.

    This is the ONE place where gradients are reduced. Several processes would add up gradients and n_tokens here.
    Raises MiniftError when no parameter has a gradient, or when the norm is not finite.
    """
    parameters = []
    for group in optimizer.param_groups:
        parameters += [p for p in group["params"] if p.grad is not None]
    if not parameters:
        raise MiniftError(NO_GRADIENT)
    for parameter in parameters:
        parameter.grad.div_(n_tokens)
    largest = math.inf if clip is None else clip
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, largest))
    if not math.isfinite(norm):
        raise MiniftError(
            f"the gradient norm is {norm}; no step was taken, the weights are unchanged; {REMEDY}")
    return norm


class WeightedMeans:
    """Weighted means of named scalars. Values that are not scalars are left out, and so is n_tokens, the weight."""

    def __init__(self):
        self.sums, self.weights = {}, {}

    def add(self, metrics, weight):
        for name, value in metrics.items():
            value = value.detach() if isinstance(value, torch.Tensor) else value
            if isinstance(value, (int, float)) or (
                    isinstance(value, torch.Tensor) and value.numel() == 1):
                self.sums[name] = self.sums.get(name, 0.0) + float(value) * weight
                self.weights[name] = self.weights.get(name, 0) + weight

    def result(self):
        return {name: total / self.weights[name] for name, total in self.sums.items() if name != "n_tokens"}


def count_tokens(metrics):
    """metrics["n_tokens"], the number of items over which the loss is a mean; MiniftError when it is missing."""
    if not isinstance(metrics, dict) or "n_tokens" not in metrics:
        raise MiniftError(
            'loss_fn must return (loss, metrics) with metrics["n_tokens"], the number of items averaged')
    return int(metrics["n_tokens"])


def check_loss(loss):
    """MiniftError unless the loss is one finite number that depends on a trainable parameter."""
    if loss.numel() != 1:
        raise MiniftError(
            f"the loss has shape {tuple(loss.shape)}; expected one number, the mean over n_tokens items")
    if not loss.requires_grad:
        raise MiniftError(NO_GRADIENT)
    if not torch.isfinite(loss):
        raise MiniftError(
            f"the loss is {loss.item()}; no step was taken, the weights are unchanged; {REMEDY}")
