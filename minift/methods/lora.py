"""LoRA: keep the weights W frozen and learn a low-rank change of them, h = W x + (alpha / rank) B A x.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", eq. 3. A starts random and B at zero, so the
first forward pass equals the base model's, and at first only B gets a gradient. Adapter files are PEFT's own.
Left out: DoRA, rank-stabilised scaling (its files load), quantised bases, several adapters at once.
"""

import contextlib
import difflib
import math

import torch
from torch import nn
from torch.nn import functional as F

from minift.core.logprobs import make_reference
from minift.core.settings import check_number
from minift.errors import MiniftError

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


class LoRALinear(nn.Module):
    """A frozen nn.Linear plus the branch (alpha / rank) B A, which is trained.

    rank: R, at most the smaller side of the weight. alpha: the strength of the branch, divided by rank.
    dropout: in [0, 1], on the branch's input. Parts: .linear, .lora_A (R, in), .lora_B (out, R), .enabled, .merged.
    """

    def __init__(self, linear, rank, alpha, dropout=0.0):
        super().__init__()
        check_settings(linear, rank, alpha, dropout)
        self.linear = linear.requires_grad_(False)
        self.rank, self.alpha, self.enabled, self.merged = rank, alpha, True, False
        like = {"device": linear.weight.device, "dtype": torch.promote_types(linear.weight.dtype, torch.float32)}
        self.lora_A = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_B = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        # As nn.Linear, loralib and PEFT do.
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.dropout = nn.Dropout(dropout)
        # The base's weight, while merged.
        self.register_buffer("original", None, persistent=False)

    @property
    def scale(self):
        return self.alpha / self.rank

    @property
    def as_linear(self):
        """For sampling: the plain layer that computes the same now (merged, or switched off), else this layer."""
        return self.linear if self.enabled == self.merged else self

    def delta(self):
        """(alpha / rank) B A, the change of the weight: (out, in)."""
        return self.scale * (self.lora_B @ self.lora_A)

    def forward(self, x):
        if not self.enabled:
            weight = self.original if self.merged else self.linear.weight
            return F.linear(x, weight, self.linear.bias)
        if self.merged:
            if self.training and torch.is_grad_enabled():
                raise MiniftError(
                    "LoRA is merged into the weights, where training cannot reach it; "
                    "call unmerge_lora(model) first")
            return self.linear(x)
        base = self.linear(x)  # (B, T, out)
        low = F.linear(self.dropout(x).to(self.lora_A.dtype), self.lora_A)  # (B, T, R)
        return base + F.linear(self.scale * low, self.lora_B).to(base.dtype)  # eq. 3

    @torch.no_grad()
    def merge(self):
        """Add the change to the weight, in at least float32, and keep a copy of the original; no effect when merged."""
        if not self.merged:
            self.original = self.linear.weight.detach().clone()
            self.linear.weight.copy_(self.original + self.delta())
            self.merged = True

    @torch.no_grad()
    def unmerge(self):
        """Put the original weight back, the same to the last bit; no effect when not merged."""
        if self.merged:
            self.linear.weight.copy_(self.original)
            self.original, self.merged = None, False


def check_settings(linear, rank, alpha, dropout):
    if not isinstance(linear, nn.Linear):
        raise MiniftError(
            f"LoRA goes around an nn.Linear, not around a {type(linear).__name__}")
    largest = min(linear.in_features, linear.out_features)
    if not 1 <= rank <= largest:
        raise MiniftError(
            f"rank is {rank}; a {linear.out_features} x {linear.in_features} weight takes 1 to {largest}")
    check_number("alpha", alpha, above=0)
    check_number("dropout", dropout, least=0, most=1)


# ---- put it into a model, take it out ----


def add_lora(model, rank, alpha, targets=ATTENTION, dropout=0.0):
    """Freeze the whole model and wrap each linear layer whose name is, or ends with, a target; returns the model.

    targets: names as "q_proj" (in every layer) or "layers.0.attn.q_proj" (in one). Afterwards unfreeze what else is
    to be trained, such as a new head. Raises MiniftError, with the model untouched, when a target is not found,
    its weight is tied to another, or the model has LoRA already.
    """
    if find_lora(model):
        raise MiniftError(
            "the model has LoRA already; train on, or start again from the base model")
    if isinstance(targets, str):
        targets = (targets,)
    layers = find_targets(model, tuple(targets))
    for linear in layers.values():
        check_settings(linear, rank, alpha, dropout)
    model.requires_grad_(False)
    for name, linear in layers.items():
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRALinear(linear, rank, alpha, dropout).train(linear.training))
    return model


def find_targets(model, targets):
    """name -> nn.Linear for each layer that a target names. MiniftError for a target that names none."""
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = sorted({name.rpartition(".")[2] for name in linears})
    for target in targets or ("",):
        if not any(_ends_with(name, target) for name in linears):
            nearest = difflib.get_close_matches(target, names, n=1)
            hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
            raise MiniftError(
                f"no linear layer is called {target!r}{hint}; the model has {', '.join(names)}")
    layers = {name: linear for name, linear in linears.items() if any(_ends_with(name, target) for target in targets)}
    owners = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    for name, linear in layers.items():
        if owners.count(id(linear.weight)) > 1:
            raise MiniftError(
                f"{name} shares its weight with another layer (tied embeddings), which merging would "
                "change too; leave it out of targets")
    return layers


def _ends_with(name, target):
    return name == target or name.endswith("." + target)


def find_lora(model):
    """name -> LoRALinear of each layer that has LoRA; empty when none has."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def lora_layers(model):
    """find_lora for a model that must have LoRA; MiniftError when it has none."""
    layers = find_lora(model)
    if not layers:
        raise MiniftError("the model has no LoRA; call add_lora or load_adapter first")
    return layers


def merge_lora(model):
    """Add every change to its weight, W + (alpha / rank) B A: the same outputs (to rounding), as fast as the base.

    The wrappers stay, and keep the originals (memory!) for unmerge_lora. Merged layers are left as they are. Raises
    MiniftError, with nothing merged, when an adapter holds NaN or infinity.
    """
    layers = lora_layers(model)
    for name, layer in layers.items():
        if not torch.isfinite(layer.delta()).all():
            raise MiniftError(
                f"{name} has a LoRA with NaN or infinity, so nothing was merged; load an earlier adapter")
    for layer in layers.values():
        layer.merge()


def unmerge_lora(model):
    """Put every original weight back, bit for bit. Layers that are not merged are left as they are."""
    for layer in lora_layers(model).values():
        layer.unmerge()


@contextlib.contextmanager
def without_lora(model):
    """Inside the block the model computes exactly what the frozen base does, even when merged; then it is as before."""
    layers = list(lora_layers(model).values())
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield model
    finally:
        for layer, enabled in zip(layers, before):
            layer.enabled = enabled


def base_reference(model, temperature=1.0):
    """make_reference for PPO and DPO without a second model: the log-probabilities of `model` without its LoRA."""
    lora_layers(model)
    with_lora = make_reference(model, temperature)

    def reference(input_ids, attention_mask=None):
        with without_lora(model):
            return with_lora(input_ids, attention_mask)
    return reference
