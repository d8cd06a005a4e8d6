"""Classification: the loss, what frozen means, features computed once, logistic regression, three regimes."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from minift.core.heads import SequenceClassifier
from minift.core.step import make_optimizer
from minift.core.train import train
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError
from minift.evaluation.metrics import accuracy
from minift.methods import classify
from minift.text.batches import Batches
from minift.text.segments import collate_labelled

V, N_LABEL = 30, 3


def make_model(pooling="mean", dropout=0.3, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    body = Transformer(TransformerConfig(V, 16, n_layer=1, n_head=2, d_model=16, d_ff=32, causal=False,
                                         norm_first=False, norm="layernorm", norm_eps=1e-12, positions="learned",
                                         mlp="gelu", bias=True, dropout=dropout)).to(dtype)
    with torch.no_grad():
        for p in body.parameters():             # features that differ from text to text
            p.mul_(5 if p.ndim == 2 else 1)
    return SequenceClassifier(body, N_LABEL, pooling)


def make_rows(n, seed=0):
    """Texts of 5 to 9 tokens; a third of ids 0..9, of 10..19 or of 20..29 at their start says which label they have."""
    generator = torch.Generator().manual_seed(seed)
    def draw(low, high, size=()):
        return torch.randint(low, high, size, generator=generator)
    examples = []
    for _ in range(n):
        label = int(draw(0, N_LABEL))
        ids = draw(0, V, (int(draw(5, 10)),))
        ids[:3] = draw(10 * label, 10 * label + 10, (3,))
        examples.append({"input_ids": ids.tolist(), "label": label})
    return examples


def make_batches(n=48, seed=0, shuffle=False):
    return Batches(make_rows(n, seed), 16, lambda rows: collate_labelled(rows, 0), shuffle=shuffle)


def weights(module):
    return copy.deepcopy(module.state_dict())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def objective(linear, x, y):
    return F.cross_entropy(linear(x), y).item()


def labelled_points(n=200, d=4, seed=0, noise=1.5):
    """Points around three centres that overlap: the best logistic regression has finite weights."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(N_LABEL, (n,), generator=generator)
    centres = torch.randn(N_LABEL, d, generator=generator, dtype=torch.float64)
    return centres[y] + noise * torch.randn(n, d, generator=generator, dtype=torch.float64), y


# ---- the loss ----


def test_loss_of_a_worked_example(classification_loss=classify.classification_loss):
    """Right labels with probabilities 1/2 and 1/8: (ln 2 + ln 8) / 2."""
    logits = torch.tensor([[2, 1, 1], [6, 1, 1]], dtype=torch.float64).log()
    assert classification_loss(logits, torch.tensor([0, 2])).item() == pytest.approx(2 * math.log(2), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_loss_equals_torchs_cross_entropy(dtype, classification_loss=classify.classification_loss):
    """On random logits it is torch's cross-entropy, with the same gradient, whatever whole numbers the labels are."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(5, (20,), generator=generator)
    mine, theirs = classification_loss(logits, labels.to(dtype)), F.cross_entropy(logits, labels)
    assert mine.item() == pytest.approx(theirs.item(), abs=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (mine, theirs)), rtol=0, atol=1e-9)


def test_labels_that_are_no_classes(classification_loss=classify.classification_loss):
    """A label beyond the classes, -100 too, is named with its row; labels with a fraction, or truth values, refused."""
    for bad in (3, -1, -100):
        with pytest.raises(MiniftError, match=f"label {bad} in row 2; the classes are 0..2"):
            classification_loss(torch.zeros(4, 3), torch.tensor([0, 2, bad, bad]))
    for labels in (torch.tensor([0.0, 1.0]), torch.tensor([True, False])):
        with pytest.raises(MiniftError, match="labels must be whole numbers"):
            classification_loss(torch.zeros(2, 3), labels)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_loss_for_train(pooling, make_classification_loss=classify.make_classification_loss):
    """Of a padded batch: the mean over its rows of the loss of each row alone; the metrics count rows and hits."""
    model = make_model(pooling, dtype=torch.float64).eval()
    examples = make_rows(7)
    loss, metrics = make_classification_loss(model)(collate_labelled(examples, 0))
    logits = torch.cat([model(torch.tensor([example["input_ids"]])) for example in examples])
    labels = [example["label"] for example in examples]
    expected = -sum(logits[i].log_softmax(-1)[label] for i, label in enumerate(labels)) / 7
    assert loss.item() == pytest.approx(expected.item(), abs=1e-9) and metrics["n_tokens"] == 7
    hits = sum(int(row.argmax()) == label for row, label in zip(logits, labels))
    assert float(metrics["accuracy"]) == pytest.approx(hits / 7, abs=1e-6)


def test_features_in_place_of_texts(make_classification_loss=classify.make_classification_loss):
    """A batch of features gives the loss of the batch of texts that they were computed from."""
    model = make_model().eval()
    batch = collate_labelled(make_rows(7), 0)
    features = model.features(batch["input_ids"], batch["attention_mask"]).detach()
    loss_fn = make_classification_loss(model)
    short, _ = loss_fn({"features": features, "label": batch["label"]})
    assert short.item() == pytest.approx(loss_fn(batch)[0].item(), abs=1e-6)


# ---- frozen means frozen ----


def test_freezing_leaves_the_head_to_train(freeze=classify.freeze, unfreeze=classify.unfreeze):
    """freeze: only the head's parameters are in the optimizer, whatever was frozen before; unfreeze: all are."""
    model = make_model()
    model.requires_grad_(False)
    assert freeze(model) is model and model.frozen
    trained = [p for group in make_optimizer(model, lr=1).param_groups for p in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in model.head.parameters()}
    assert unfreeze(model) is model and not model.frozen and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_freezing_keeps_the_mode(training, freeze=classify.freeze, unfreeze=classify.unfreeze):
    """The model stays in its mode; the frozen body is in evaluation mode at once; unfrozen it follows the model."""
    model = freeze(make_model().train(training))
    assert model.training == model.head.training == training and not model.body.training
    assert not any(module.training for module in model.train().body.modules())
    unfreeze(model.train(training))
    assert all(module.training == training for module in model.modules())


def test_a_frozen_body_is_the_same_to_the_last_bit(freeze=classify.freeze):
    """Training with weight decay leaves every tensor of the body bit-equal, without a gradient, and moves the head."""
    model = make_model()
    before = weights(model)
    train(freeze(model), make_batches(), classify.make_classification_loss(model), steps=12, lr=0.1, weight_decay=0.5,
          progress=False)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("body."))
    assert all(p.grad is None for p in model.body.parameters())
    assert not torch.equal(after["head.weight"], before["head.weight"]) and after["head.bias"].abs().min() > 0


def test_frozen_features_have_no_noise(freeze=classify.freeze, unfreeze=classify.unfreeze):
    """In train mode, with dropout 0.3, two passes give the same bits, those of evaluation; unfrozen they differ."""
    model, batch = make_model(dropout=0.3), collate_labelled(make_rows(5), 0)
    inputs = batch["input_ids"], batch["attention_mask"]
    expected = model.eval().features(*inputs)
    freeze(model).train()
    first, second = model.features(*inputs), model.features(*inputs)
    assert torch.equal(first, second) and torch.equal(first, expected) and not first.requires_grad
    unfreeze(model)
    assert not torch.equal(model.features(*inputs), model.features(*inputs))


# ---- features computed once ----


def test_cached_features_are_the_recomputed_ones(cached_features=classify.cached_features):
    """(features, labels) of all rows in the order of the batches; the model's modes stay; also of a body not frozen."""
    model = make_model().train()
    features, labels = cached_features(model, make_batches())
    assert all(module.training for module in model.modules()) and not features.requires_grad
    assert labels.tolist() == [example["label"] for example in make_rows(48)]
    model.eval()
    alone = torch.cat([model.features(torch.tensor([row["input_ids"]])) for row in make_rows(48)])
    torch.testing.assert_close(features, alone, rtol=0, atol=1e-5)
    for batch, part in zip(make_batches(), features.split(16)):
        assert torch.equal(model.features(batch["input_ids"], batch["attention_mask"]), part)
    without_mask = [{"input_ids": torch.ones(2, 4, dtype=torch.long), "label": torch.tensor([1, 0])}]
    assert torch.equal(cached_features(model, without_mask)[1], torch.tensor([1, 0]))


def test_training_on_cached_features_is_training_on_texts(cached_features=classify.cached_features):
    """The head that is trained on features computed once equals the one for which they are computed in every step."""
    heads = []
    for cached in (True, False):
        model = classify.freeze(make_model())
        batches = [batch for batch in make_batches()]
        if cached:
            features, labels = cached_features(model, batches)
            batches = [{"features": x, "label": y} for x, y in zip(features.split(16), labels.split(16))]
        train(model, batches, classify.make_classification_loss(model), steps=15, lr=0.05, progress=False)
        heads.append(weights(model.head))
    for name in heads[0]:
        torch.testing.assert_close(heads[0][name], heads[1][name], rtol=0, atol=1e-6)


def test_rows_are_shuffled_by_seed_and_epoch(Rows=classify.Rows):
    """Each pass holds every row once, with its label, in a new order; seed and epoch decide which."""
    def order(rows):
        parts = list(rows)
        assert all((part["label"] == part["x"][:, 0] * 2).all() for part in parts)
        assert [len(part["x"]) for part in parts] == [4, 4, 2] and len(rows) == 3
        return torch.cat([part["label"] for part in parts]).tolist()
    x = torch.arange(10)[:, None]
    def make(seed):
        return Rows({"x": x, "label": x[:, 0] * 2}, 4, seed)
    rows = make(1)
    first, second = order(rows), order(rows)
    assert sorted(first) == sorted(second) == list(range(0, 20, 2)) and first != second
    rows.epoch = 0
    assert order(rows) == first == order(make(1)) != order(make(2))


# ---- logistic regression ----


def test_fit_linear_finds_the_optimum(fit_linear=classify.fit_linear):
    """Without weight decay the objective is that of L-BFGS's solution to 1e-6, and the gradient is near 0."""
    x, y = labelled_points()
    linear = fit_linear(x, y, N_LABEL, steps=400, lr=0.1, weight_decay=0.0, batch_size=len(x))
    weight, bias = torch.zeros(N_LABEL, 4, dtype=torch.float64), torch.zeros(N_LABEL, dtype=torch.float64)
    best = [p.requires_grad_(True) for p in (weight, bias)]
    solver = torch.optim.LBFGS(best, max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)
    def closure():
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y)
        loss.backward()
        return loss
    solver.step(closure)
    optimum = closure().item()
    assert 0.1 < optimum < math.log(3) - 0.1                                 # the classes overlap
    assert objective(linear, x, y) == pytest.approx(optimum, abs=1e-6)
    torch.testing.assert_close(linear(x).log_softmax(-1), (x @ weight.T + bias).log_softmax(-1), rtol=0, atol=0.01)


def test_the_defaults_come_near_the_optimum(fit_linear=classify.fit_linear):
    """With the settings of a probe, mini-batches and weight decay too, the objective is within 2 % of the optimum's."""
    x, y = labelled_points(n=600)
    best = fit_linear(x, y, N_LABEL, lr=0.1, weight_decay=0.0, batch_size=len(x))
    assert objective(fit_linear(x, y, N_LABEL), x, y) < 1.02 * objective(best, x, y)


def test_separable_points_are_separated(fit_linear=classify.fit_linear):
    """Three far clusters are told apart without an error, also points that were not seen."""
    x, y = labelled_points(noise=0.05)
    linear = fit_linear(x[:100], y[:100], N_LABEL)
    assert accuracy(linear(x).argmax(-1), y) == 1


def test_standardising_is_folded_into_the_weights(fit_linear=classify.fit_linear):
    """The layer for raw features gives the logits of the one for features with mean 0 and std 1, to 1e-9."""
    x, y = labelled_points()
    x = x * torch.tensor([1e-2, 1, 30, 5]) + torch.tensor([3, -50, 0, 1e2])
    white = (x - x.mean(0)) / x.std(0, correction=0)
    raw, plain = fit_linear(x, y, N_LABEL, steps=30), fit_linear(white, y, N_LABEL, steps=30, standardise=False)
    torch.testing.assert_close(raw(x), plain(white), rtol=0, atol=1e-9)
    assert raw(x).std() > 0.1


def test_units_and_offsets_do_not_matter(fit_linear=classify.fit_linear):
    """Features in other units, and one that is always the same, give the same predictions, finite ones."""
    x, y = labelled_points()
    expected = fit_linear(x, y, N_LABEL, steps=30)(x)
    other = torch.cat([1000 * x - 7, torch.full((len(x), 1), 5.0, dtype=torch.float64)], 1)
    torch.testing.assert_close(fit_linear(other, y, N_LABEL, steps=30)(other), expected, rtol=0, atol=1e-9)


def test_fit_linear_begins_at_nothing(fit_linear=classify.fit_linear):
    """Where nothing can be learned, all classes stay equally likely; dtype and sizes are those of the data."""
    x, y = torch.zeros(30, 4, dtype=torch.float64), torch.arange(30) % 3
    linear = fit_linear(x, y, N_LABEL, steps=1, batch_size=30)
    assert linear.weight.dtype == torch.float64 and linear.weight.shape == (3, 4)
    torch.testing.assert_close(linear(x).softmax(-1), torch.full((30, 3), 1 / 3, dtype=torch.float64), rtol=0,
                               atol=1e-9)


def test_without_features_the_shares_are_learned(fit_linear=classify.fit_linear):
    """Where features say nothing, the probabilities are the labels' shares: weight decay leaves the bias alone; the
    weights it pulls towards 0."""
    y = torch.tensor([0] * 20 + [1] * 6 + [2] * 4)
    x = torch.zeros(30, 4, dtype=torch.float64)
    linear = fit_linear(x, y, N_LABEL, steps=300, lr=0.1, weight_decay=5.0)
    shares = torch.tensor([20 / 30, 6 / 30, 4 / 30], dtype=torch.float64)
    torch.testing.assert_close(linear(x)[0].softmax(-1), shares, rtol=0, atol=1e-3)
    x, y = labelled_points()
    large, small = (fit_linear(x, y, N_LABEL, steps=50, lr=0.1, weight_decay=decay).weight.norm() for decay in (0, 5.0))
    assert small < 0.5 * large


def test_fit_linear_is_a_function_of_its_seed(fit_linear=classify.fit_linear):
    """The same seed gives the same bits, another seed another order of the rows; labels out of range are refused."""
    x, y = labelled_points()
    first, again, other = (weights(fit_linear(x, y, N_LABEL, steps=5, batch_size=20, seed=seed)) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    with pytest.raises(MiniftError, match="label 2 in row"):
        fit_linear(x, y, 2, steps=5, batch_size=200)


# ---- the regimes ----


def test_a_probe_beats_the_majority(train_classifier=classify.train_classifier):
    """On separable texts the head on a frozen body, even a random one, is far above the most frequent class."""
    model = make_model()
    assert train_classifier(model, make_batches(300), "probe") == []
    rows = make_rows(200, seed=1)
    right = [row["label"] for row in rows]
    with torch.no_grad():
        predicted = [int(model.eval()(torch.tensor([row["input_ids"]])).argmax()) for row in rows]
    assert accuracy(predicted, right) > max(right.count(i) for i in range(3)) / 200 + 0.2


def test_a_probe_is_fit_linear_on_frozen_features(train_probe=classify.train_probe):
    """The head is fit_linear's on the cached features, settings and all; the body is bit-equal, and stays frozen."""
    model = make_model()
    before = weights(model.body)
    features, labels = classify.cached_features(model, make_batches())
    settings = {"steps": 20, "lr": 0.1, "seed": 3, "batch_size": 10}
    expected = classify.fit_linear(features, labels, N_LABEL, **settings)
    assert train_probe(model, make_batches(), **settings) is model and model.frozen
    assert same(weights(model.head), weights(expected)) and same(weights(model.body), before)


def test_full_trains_all(train_classifier=classify.train_classifier):
    """Every tensor moves, but for the biases of keys, which cancel; the history is train's; a frozen body thaws."""
    model = classify.freeze(make_model(dropout=0.0))
    before = weights(model)
    history = train_classifier(model, make_batches(), "full", steps=10, lr=1e-2, warmup=2, progress=False)
    assert len(history) == 10 and history[-1]["loss"] < history[0]["loss"]
    assert [row["lr"] for row in history[:2]] == pytest.approx([5e-3, 1e-2], abs=1e-9), "warmup is a setting of train"
    after = model.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before if "k_proj.bias" not in name)
    assert not model.frozen


def test_probe_then_full_is_the_one_and_then_the_other(train_classifier=classify.train_classifier):
    """Bit-equal to a probe followed by full fine-tuning; its first loss is the probe's, far below a fresh head's."""
    probe = {"steps": 60, "batch_size": 48}
    full = {"steps": 4, "lr": 1e-3, "progress": False}
    both, steps, fresh = (make_model(dropout=0.0) for _ in range(3))
    history = train_classifier(both, make_batches(), "probe-then-full", probe=probe, **full)
    classify.train_probe(steps, make_batches(), **probe)
    body, head = weights(steps.body), weights(steps.head)
    assert same(body, weights(make_model(dropout=0.0).body))
    assert history == train_classifier(steps, make_batches(), "full", **full)
    assert same(weights(both), weights(steps)) and not same(weights(both.head), head)
    assert not same(weights(both.body), body)
    assert history[0]["loss"] < train_classifier(fresh, make_batches(), "full", **full)[0]["loss"] - 0.3


def test_regimes_that_do_not_exist(train_classifier=classify.train_classifier):
    """Another regime: MiniftError that names the three, and nothing is trained."""
    model = make_model()
    before = weights(model)
    with pytest.raises(MiniftError, match="'lora'.*probe, full, probe-then-full"):
        train_classifier(model, make_batches(), "lora")
    assert same(weights(model), before) and not model.frozen


@pytest.mark.parametrize("regime", classify.REGIMES)
def test_a_label_out_of_range_is_named(regime, train_classifier=classify.train_classifier):
    """In every regime a label that the head has no class for is a MiniftError with the label and its row."""
    rows = [{"input_ids": [1, 2, 3], "label": label} for label in (0, 1, 3)]
    with pytest.raises(MiniftError, match="label 3 in row"):
        train_classifier(make_model(), [collate_labelled(rows, 0)], regime, steps=2, progress=False)


def test_resuming_is_bit_equal(tmp_path):
    """Full fine-tuning that is stopped and resumed by new objects ends as if never stopped, dropout included."""
    def run(stop=None, **options):
        model = make_model()
        torch.manual_seed(1)
        loss_fn, calls = classify.make_classification_loss(model), []
        def stopping(batch):
            calls.append(batch)
            if len(calls) == stop:
                raise OSError("the power went out")
            return loss_fn(batch)
        train(model, make_batches(shuffle=True), stopping, steps=6, lr=1e-2, progress=False,
              state_path=tmp_path / "state", save_every=4, **options)
        return weights(model)
    whole = run()
    (tmp_path / "state").unlink()
    with pytest.raises(OSError, match="power"):
        run(stop=6)
    assert same(run(resume=True), whole)
