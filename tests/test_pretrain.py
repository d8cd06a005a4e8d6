"""Next-token loss, and replay of old text while learning new."""

import math

import pytest
import torch
from torch.nn import functional as F

from minift.core.heads import LanguageModel
from minift.core.train import train
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.methods import pretrain


def make_model(seed=0, vocab_size=11, dtype=torch.float64):
    torch.manual_seed(seed)
    config = TransformerConfig(vocab_size=vocab_size, context_length=16, n_layer=1, n_head=2, d_model=16, d_ff=32)
    model = LanguageModel(config).to(dtype)
    with torch.no_grad():
        model.body.embed.weight.mul_(20)        # predictions that differ from token to token
    return model


def make_ids(*shape, seed=0, vocab_size=11):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


class Source:
    """Batches of one value, of which every row tells its batch and its place; new epochs add 1000."""

    def __init__(self, value, n_batches, n_rows, length=4):
        self.value, self.n_batches, self.n_rows, self.length, self.epoch = value, n_batches, n_rows, length, 0

    def __len__(self):
        return self.n_batches

    def __iter__(self):
        self.epoch += 1
        rows = torch.arange(self.n_batches * self.n_rows).view(self.n_batches, self.n_rows, 1) + 1000 * (self.epoch - 1)
        for batch in rows:
            ids = self.value + batch.expand(-1, self.length)
            yield {"input_ids": ids, "labels": ids.clone()}


# ---- the loss ----


def test_loss_is_the_mean_over_next_tokens(make_pretrain_loss=pretrain.make_pretrain_loss):
    """Cross-entropy of the logits at t with the token at t + 1, the mean over all tokens but the first of each row."""
    model, ids = make_model(), make_ids(3, 7)
    loss, metrics = make_pretrain_loss(model)({"input_ids": ids, "labels": ids})
    total = 0.0
    for row, logits in zip(ids, model(ids).detach()):
        for t in range(6):
            total -= math.log(float(logits[t].softmax(-1)[row[t + 1]]))
    assert loss.item() == pytest.approx(total / 18, abs=1e-9) and metrics["n_tokens"] == 18


def test_ignored_labels_are_not_learned(make_pretrain_loss=pretrain.make_pretrain_loss):
    """Labels of -100 neither count nor have a gradient: the loss is the mean over the others."""
    model, ids = make_model(), make_ids(2, 6)
    labels = ids.clone()
    labels[0, 3:], labels[1, 1] = -100, -100
    loss, metrics = make_pretrain_loss(model)({"input_ids": ids, "labels": labels})
    expected = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9) and metrics["n_tokens"] == 2 + 4
    nothing, metrics = make_pretrain_loss(model)({"input_ids": ids, "labels": torch.full_like(ids, -100)})
    assert nothing.item() == 0 and metrics["n_tokens"] == 0


def test_labels_may_be_left_out(make_pretrain_loss=pretrain.make_pretrain_loss):
    """Without labels every token is learned."""
    model, ids = make_model(), make_ids(2, 6)
    loss_fn = make_pretrain_loss(model)
    assert loss_fn({"input_ids": ids})[0] == loss_fn({"input_ids": ids, "labels": ids})[0]


def test_packed_rows_lose_what_single_rows_lose(make_pretrain_loss=pretrain.make_pretrain_loss):
    """Two texts in one row, told apart by segment_ids, have the summed loss that they have alone."""
    model, ids = make_model(), make_ids(1, 9)
    loss_fn = make_pretrain_loss(model)
    packed = {"input_ids": ids, "labels": ids.clone(), "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]),
              "segment_ids": torch.tensor([[0] * 4 + [1] * 5])}
    packed["labels"][0, 4] = -100
    loss, metrics = loss_fn(packed)
    alone = 3 * loss_fn({"input_ids": ids[:, :4]})[0] + 4 * loss_fn({"input_ids": ids[:, 4:]})[0]
    assert metrics["n_tokens"] == 7 and (7 * loss).item() == pytest.approx(alone.item(), abs=1e-9)


@pytest.mark.parametrize("sides", [(0, 3), (3, 0)])
def test_padding_changes_nothing(sides, make_pretrain_loss=pretrain.make_pretrain_loss):
    """Rows padded on either side, with attention_mask and labels of -100, have the loss of the rows themselves."""
    model, ids = make_model(), make_ids(1, 5)
    labels = ids.clone()
    labels[:, 0] = -100                         # with padding before it, the first token would have a prediction
    padded = {"input_ids": F.pad(ids, sides, value=4), "labels": F.pad(labels, sides, value=-100),
              "attention_mask": F.pad(torch.ones_like(ids), sides).bool()}
    loss_fn = make_pretrain_loss(model)
    assert loss_fn(padded)[0].item() == pytest.approx(loss_fn({"input_ids": ids})[0].item(), abs=1e-9)


def test_gradient_is_that_of_the_formula(make_pretrain_loss=pretrain.make_pretrain_loss):
    """The gradient of every parameter equals that of torch's own cross-entropy on all logits."""
    model, ids = make_model(), make_ids(2, 6)
    parameters = list(model.parameters())
    mine = torch.autograd.grad(make_pretrain_loss(model)({"input_ids": ids})[0], parameters)
    theirs = torch.autograd.grad(F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten()), parameters)
    for a, b in zip(mine, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_a_fresh_model_loses_log_v(make_pretrain_loss=pretrain.make_pretrain_loss):
    """Before training, every token is about equally likely: the first loss is near ln V."""
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(97, 16, n_layer=2, n_head=2, d_model=32, d_ff=64))
    loss, _ = make_pretrain_loss(model)({"input_ids": make_ids(8, 16, vocab_size=97)})
    assert loss.item() == pytest.approx(math.log(97), abs=0.2)


# ---- replay ----


@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.8])
def test_share_of_old_rows(share, replay=pretrain.replay):
    """On average `share` of the rows are old ones; batches keep their size, an epoch its number of batches."""
    batches = list(replay(Source(0, 200, 8), Source(10_000_000, 200, 8), share))
    old = [int((batch["input_ids"][:, 0] >= 10_000_000).sum()) for batch in batches]
    assert len(batches) == 200 and all(len(batch["input_ids"]) == 8 for batch in batches)
    assert sum(old) / 1600 == pytest.approx(share, abs=5 * 0.5 / 8 / math.sqrt(200))    # rounding: std at most 1/2 row
    assert max(old) - min(old) <= 1


def test_rows_stay_whole_and_are_drawn_at_random(replay=pretrain.replay):
    """Input ids and labels of a row stay together; over time every place in a batch is exchanged, and every old
    row comes."""
    rows = torch.arange(4)[:, None].expand(4, 3)
    new, old = [{"input_ids": 100 + rows, "labels": -rows}], [{"input_ids": 200 + rows, "labels": -10 - rows}]
    kept, came = set(), set()
    mixed = replay(new, old, 0.5, seed=3)
    for _ in range(40):
        for batch in mixed:
            for ids, labels in zip(batch["input_ids"][:, 0].tolist(), batch["labels"][:, 0].tolist()):
                assert labels == (-(ids - 100) if ids < 200 else -10 - (ids - 200))
                (kept if ids < 200 else came).add(ids)
    assert kept == {100, 101, 102, 103} and came == {200, 201, 202, 203}


def test_replay_is_a_function_of_seed_and_epoch(replay=pretrain.replay):
    """The same seed gives the same batches, another seed and another epoch others; setting epoch goes back."""
    def ids(mixed):
        return [batch["input_ids"].tolist() for batch in mixed]
    def make(seed):
        return replay(Source(0, 9, 4), Source(500_000, 5, 4), 0.5, seed)
    mixed = make(1)
    first, second = ids(mixed), ids(mixed)
    assert first == ids(make(1)) and first != ids(make(2)) and first != second
    mixed.epoch = 0
    assert ids(mixed) == first and ids(mixed) == second
    mixed.epoch = 1
    assert ids(mixed) == second
    assert second[0][0][0] % 500_000 >= 1000        # the sources moved on to their own second epoch


def test_rows_of_unequal_length_are_padded(replay=pretrain.replay):
    """Shorter rows get labels of -100, segment -1 and an attention mask of 0 on the right."""
    def source(length):
        x = torch.ones(2, length, dtype=torch.long)
        return [{"input_ids": x, "labels": x, "segment_ids": x, "attention_mask": x.bool()}]
    batch, = replay(source(2), source(5), 0.5)
    assert batch["labels"].tolist() == [[1, 1, -100, -100, -100], [1] * 5]
    assert batch["segment_ids"].tolist() == [[1, 1, -1, -1, -1], [1] * 5]
    assert batch["attention_mask"].tolist() == [[True, True, False, False, False], [True] * 5]


def test_what_cannot_be_replayed(replay=pretrain.replay):
    """A share of 1 or below 0, no old text, or batches made in another way: MiniftError."""
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(MiniftError, match="share"):
            replay([], [], share)
    with pytest.raises(MiniftError, match="old dataset is empty"):
        list(replay(Source(0, 2, 2), [], 0.5))
    with pytest.raises(MiniftError, match="entries"):
        list(replay(Source(0, 2, 2), [{"input_ids": torch.ones(2, 4)}], 0.5))


def test_replay_keeps_the_old_domain(make_pretrain_loss=pretrain.make_pretrain_loss, replay=pretrain.replay):
    """Going on with a new domain raises the loss on the old one; with replay it rises less, and the new one is
    still learned."""
    def domain(step, seed):                                     # sequences that count in steps of 2 or 3
        starts = make_ids(16, 1, seed=seed)
        return {"input_ids": (starts + step * torch.arange(8)) % 11}
    old, new = [domain(2, s) for s in range(4)], [domain(3, s) for s in range(4)]

    def tune(batches):
        model = make_model(dtype=torch.float32)
        loss_fn = make_pretrain_loss(model)
        train(model, old, loss_fn, steps=40, lr=1e-2, progress=False)
        before = float(loss_fn(domain(2, 9))[0].detach())
        history = train(model, batches, loss_fn, steps=30, lr=1e-2, warmup=5, progress=False)
        assert history[1]["loss"] < 1.5 * history[0]["loss"]    # warming up again does not blow up
        return before, float(loss_fn(domain(2, 9))[0].detach()), float(loss_fn(domain(3, 9))[0].detach())
    before, forgotten, learned = tune(new)
    _, kept, learned_too = tune(replay(new, old, 0.25))
    assert forgotten > before + 0.5 and kept < (before + forgotten) / 2
    assert learned < 1 and learned_too < 1.5
