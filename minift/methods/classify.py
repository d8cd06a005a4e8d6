"""Classification on an encoder: a linear head on its pooled states; the encoder is frozen or trained as well.

Devlin et al. 2018, "BERT", sections 3.2 and 5.3 (fine-tuning and features); probe, then fine-tune: Kumar et al. 2022,
"Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", section 4.
Left out: layer-wise learning rates, several labels for one text.
"""

import torch
from torch import nn
from torch.nn import functional as F

from minift.core.logprobs import eval_mode
from minift.core.train import train
from minift.errors import MiniftError
from minift.text.batches import epoch_generator

REGIMES = ("probe", "full", "probe-then-full")
PROBE = {"steps": 400, "lr": 2e-2, "batch_size": 256, "weight_decay": 0.1}


def classification_loss(logits, labels):
    """-log p(right label), nats, the mean over rows. logits: (B, L); labels: (B,), whole numbers in 0..L-1.

    Raises MiniftError, with row and label, for a label out of range or one that is no whole number.
    """
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise MiniftError(
            f"labels must be whole numbers (torch.long), got {labels.dtype}; number the classes from 0")
    wrong = ((labels < 0) | (labels >= logits.shape[-1])).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise MiniftError(
            f"label {int(labels[row])} in row {row}; the classes are 0..{logits.shape[-1] - 1}")
    return F.cross_entropy(logits, labels.long())


def make_classification_loss(model):
    """classification_loss of the model as loss_fn(batch) for `train`.

    batch: label (B,), and input_ids and attention_mask (B, T), or features (B, D) that were computed before.
    """
    def loss_fn(batch):
        if "features" in batch:
            logits = model.head(batch["features"])  # (B, L)
        else:
            logits = model(batch["input_ids"], batch.get("attention_mask"))  # (B, L)
        accuracy = (logits.argmax(-1) == batch["label"]).float().mean()
        return classification_loss(logits, batch["label"]), {"n_tokens": len(logits), "accuracy": accuracy}
    return loss_fn


def freeze(model):
    """Only the head is trained from now on: the body gets no gradient, no weight decay, no dropout, in any mode."""
    model.requires_grad_(True)
    model.body.requires_grad_(False)
    return model.train(model.training)


def unfreeze(model):
    """All of the model is trained from now on."""
    model.requires_grad_(True)
    return model.train(model.training)


@torch.no_grad()
def cached_features(model, batches):
    """(features (N, D), labels (N,)) of all rows, computed once, in evaluation mode; fixed while the body is frozen."""
    device = next(model.parameters()).device
    features, labels = [], []
    with eval_mode(model):
        for batch in batches:
            mask = batch.get("attention_mask")
            mask = None if mask is None else mask.to(device)
            features.append(model.features(batch["input_ids"].to(device), mask))
            labels.append(batch["label"].to(device))
    return torch.cat(features), torch.cat(labels)


class Rows:
    """Shuffled batches of rows of tensors in memory; the order of each epoch depends on (seed, epoch) alone."""

    def __init__(self, tensors, batch_size, seed=0):
        self.tensors, self.batch_size, self.seed, self.epoch = tensors, batch_size, seed, 0
        self.n = len(next(iter(tensors.values())))

    def __len__(self):
        return -(-self.n // self.batch_size)

    def __iter__(self):
        order = torch.randperm(self.n, generator=epoch_generator(self.seed, self.epoch))
        self.epoch += 1
        return (
            {name: x[part.to(x.device)] for name, x in self.tensors.items()}
            for part in order.split(self.batch_size))


def fit_linear(
        features, labels, n_label, *, steps=PROBE["steps"], lr=PROBE["lr"], weight_decay=PROBE["weight_decay"],
        batch_size=PROBE["batch_size"], standardise=True, seed=0):
    """Logistic regression: an nn.Linear (D, L) trained on features (N, D) and labels (N,) by AdamW, from zero.

    standardise: learn on features with mean 0 and std 1 over the rows, so that one learning rate suits all; afterwards
    the weights are changed to take the features as they were. A probe is fit_linear on an encoder's features; a bag of
    words is fit_linear on counts of words.
    """
    # Prepare the features and a linear layer that starts at zero.
    mean, std = torch.zeros_like(features[0]), torch.ones_like(features[0])  # (D,)
    if standardise:
        mean, std = features.mean(0), features.std(0, correction=0)
        std = torch.where(std > 1e-6, std, 1.0)
    linear = nn.Linear(features.shape[1], n_label).to(features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)

    def loss_fn(batch):
        return classification_loss(linear(batch["x"]), batch["label"]), {"n_tokens": len(batch["label"])}

    # Train it, then put mean and std into its weights.
    rows = Rows({"x": (features - mean) / std, "label": labels}, batch_size, seed)
    train(linear, rows, loss_fn, steps=steps, lr=lr, weight_decay=weight_decay, progress=False)
    with torch.no_grad():
        linear.weight.div_(std)
        linear.bias.sub_(linear.weight @ mean)
    return linear


def train_probe(model, batches, **settings):
    """Freeze the body, compute the features once, and fit the head on them. Returns the model."""
    freeze(model)
    features, labels = cached_features(model, batches)
    linear = fit_linear(features, labels, model.head.out_features, **settings)
    model.head.load_state_dict(linear.state_dict())
    return model


def train_classifier(
        model, batches, regime="probe", *, steps=200, lr=5e-4, probe=None, **settings):
    """Train a SequenceClassifier by one of three regimes; returns the history of the training of all parameters.

    regime: "probe" (frozen body), "full" (all parameters), "probe-then-full" (the head first, on the frozen body, then
    all). batches: re-iterable of dicts with input_ids, attention_mask, label. steps, lr and settings: for `train`, when
    all is trained; probe: a dict of settings for fit_linear. Raises MiniftError for another regime.
    """
    if regime not in REGIMES:
        raise MiniftError(f"regime is {regime!r}; expected one of {', '.join(REGIMES)}")
    if regime != "full":
        train_probe(model, batches, **(probe or {}))
    if regime == "probe":
        return []
    unfreeze(model)
    return train(
        model, batches, make_classification_loss(model), steps=steps, lr=lr, **settings)
