"""Heads: tying, the first loss, sizes of real models, the masked head, pooling, one score a token."""

import copy
import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from minift.core import heads
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError

TINY = TransformerConfig(vocab_size=37, context_length=32, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=48)
SMALL_GPT2 = TransformerConfig(vocab_size=50257, context_length=1024, n_layer=12, n_head=12, d_model=768, d_ff=3072,
                               norm="layernorm", positions="learned", mlp="gelu_tanh", bias=True)
SMOLLM2_135M = TransformerConfig(vocab_size=49152, context_length=8192, n_layer=30, n_head=9, n_kv_head=3, d_model=576,
                                 d_ff=1536)
ENCODER = TransformerConfig(vocab_size=37, context_length=32, n_layer=2, n_head=4, d_model=32, d_ff=48, causal=False,
                            norm_first=False, norm="layernorm", norm_eps=1e-12, positions="learned", mlp="gelu",
                            bias=True)
BERT_BASE = dataclasses.replace(ENCODER, vocab_size=30522, context_length=512, n_layer=12, n_head=12, n_kv_head=12,
                                d_model=768, d_ff=3072)


def close(got, expected, atol):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def scorer(TokenScorer=heads.TokenScorer):
    torch.manual_seed(0)
    body = Transformer(TINY).eval()
    for p in body.parameters():
        p.data = p.data * (4 if p.dim() == 2 else 1)
    return TokenScorer(body)


def prompts(side):
    """Three rows of 6, 3 and 1 real tokens among 6 columns; returns ids, mask and the rows alone."""
    ids = torch.randint(0, 37, (3, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, n in enumerate((6, 3, 1)):
        mask[row, 6 - n:] = mask[row, 6 - n:] | (side == "left")
        mask[row, :n] = mask[row, :n] | (side == "right")
    return ids, mask, [ids[row][mask[row]][None] for row in range(3)]


def test_logits_are_the_hidden_states_times_the_embedding(LanguageModel=heads.LanguageModel):
    """logits = hidden E^T with the embedding matrix E when tied, with a matrix of its own when not."""
    ids = torch.randint(0, 37, (2, 5))
    tied, untied = LanguageModel(TINY), LanguageModel(TINY, tie_embeddings=False)
    close(tied(ids), tied.body(ids) @ tied.body.embed.weight.T, 1e-6)
    close(untied(ids), untied.body(ids) @ untied.head.weight.T, 1e-6)
    assert untied.head.weight is not untied.body.embed.weight
    assert abs(untied.head.weight.std() / 0.02 - 1) < 0.1


def test_the_body_gets_every_argument(LanguageModel=heads.LanguageModel):
    """attention_mask, position_ids, segment_ids and cache reach the body."""
    torch.manual_seed(0)
    model, ids = LanguageModel(TINY), torch.randint(0, 37, (1, 6))
    seen = []
    model.body.forward = lambda *args: seen.append(args) or torch.zeros(1, 6, 32)
    model(ids, attention_mask=1, position_ids=2, segment_ids=3, cache=4)
    assert seen[0][0] is ids and seen[0][1:] == (1, 2, 3, 4)


def test_tying_survives_copies_and_moves(LanguageModel=heads.LanguageModel):
    """After deepcopy, .to() and load_state_dict the head still is the embedding, counted once by parameters()."""
    model = LanguageModel(TINY)
    copied = copy.deepcopy(model)
    moved = copy.deepcopy(model).to(torch.float64).float()
    loaded = LanguageModel(TINY)
    loaded.load_state_dict(model.state_dict())
    for m in (model, copied, moved, loaded):
        assert m.head.weight is m.body.embed.weight
        before = m.head.weight[3, 0].item()
        with torch.no_grad():
            m.body.embed.weight[3] += 1
        assert abs(m.head.weight[3, 0].item() - before - 1) < 1e-6
        assert sum(p is m.head.weight for p in m.parameters()) == 1
    assert copied.head.weight is not model.head.weight


@pytest.mark.parametrize(("config", "count"), [(SMALL_GPT2, 124_439_808), (SMOLLM2_135M, 134_515_008)])
def test_sizes_of_real_models(config, count, LanguageModel=heads.LanguageModel):
    """GPT-2 small has 124,439,808 parameters, SmolLM2-135M 134,515,008, tied weights counted once."""
    with torch.device("meta"):
        model = LanguageModel(config)
    assert sum(p.numel() for p in model.parameters()) == count


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("vocab_size", "d_model", "positions"),
                         [(256, 64, "rotary"), (1024, 128, "rotary"), (2048, 128, "learned")])
def test_the_first_loss_is_ln_v(vocab_size, d_model, positions, tied, LanguageModel=heads.LanguageModel):
    """Untrained, the model guesses: its cross-entropy is ln V within 0.1."""
    torch.manual_seed(0)
    model = LanguageModel(TransformerConfig(vocab_size, 64, 4, 4, d_model, 2 * d_model, positions=positions), tied)
    ids = torch.randint(0, vocab_size, (4, 64))
    loss = F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss - math.log(vocab_size)) < 0.1


def test_the_scorer_starts_small(TokenScorer=heads.TokenScorer):
    """The score's weight is drawn with variance 1 / (D + 1), its bias is 0: first scores are near N(0, 1)."""
    torch.manual_seed(0)
    body = Transformer(TransformerConfig(4, 4, 1, 1, 128, 1))
    scorers = [TokenScorer(body) for _ in range(100)]
    weights = torch.cat([model.score.weight[0] for model in scorers])        # 12,800 draws: their std is within 2 %
    assert abs(weights.std() * math.sqrt(129) - 1) < 0.03 and abs(weights.mean()) < 0.004
    assert all(torch.equal(model.score.bias, torch.zeros(1)) for model in scorers)


def test_one_score_for_each_token(TokenScorer=heads.TokenScorer):
    """Scores (B, T) are hidden . weight + bias; a score depends on every token up to its own and on none after."""
    model = scorer(TokenScorer)
    ids, _, _ = prompts("right")
    scores = model(ids)
    assert scores.shape == (3, 6)
    close(scores, model.body(ids) @ model.score.weight[0] + model.score.bias, 1e-6)
    for t in range(6):
        other = ids.clone()
        other[:, t] = (other[:, t] + 1) % 37
        changed = (model(other) - scores).abs()
        assert changed[:, t:].min() > 1e-6 and (changed[:, :t] == 0).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_last_score_is_at_the_last_real_token(side, TokenScorer=heads.TokenScorer):
    """last_scores is each row's score alone, at its last real token, whatever the pads, their side and their ids."""
    model = scorer(TokenScorer)
    ids, mask, rows = prompts(side)
    expected = torch.stack([model(row)[0, -1] for row in rows])
    for pad in (0, 5, int(ids[1][mask[1]][0])):                              # the last one also stands inside the text
        padded = torch.where(mask, ids, pad)
        close(model.last_scores(padded, mask), expected, 1e-5)
        close(model.last_scores(padded, mask.int()), expected, 1e-5)
    close(model.last_scores(ids), model(ids)[:, -1], 1e-6)


def test_a_row_of_pads_has_no_score(TokenScorer=heads.TokenScorer):
    """A row without a real token is a MiniftError that names the row."""
    ids, mask, _ = prompts("right")
    mask[2] = False
    with pytest.raises(MiniftError, match="row 2 holds only padding"):
        scorer(TokenScorer).last_scores(ids, mask)


def test_the_scorer_follows_its_body(TokenScorer=heads.TokenScorer):
    """A scorer on a float64 body is float64; it uses the body it was given, not a copy."""
    body = Transformer(TINY).double()
    model = TokenScorer(body)
    assert model.body is body and model.config is TINY and model(torch.tensor([[1, 2]])).dtype == torch.float64


# ---- the masked head ----


def encoder(Model=heads.MaskedLanguageModel, config=ENCODER, dtype=torch.float32):
    """A model whose weights are large and whose norms and biases are not 1 and 0, so that a forgotten one shows."""
    torch.manual_seed(0)
    model = Model(config).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p * 5 if p.ndim == 2 else p + 0.2 * torch.randn_like(p))
    return model.eval()


def test_the_masked_head_by_hand(MaskedLanguageModel=heads.MaskedLanguageModel):
    """logits = E n(g(W h + b)) + c: g the exact GELU, n a LayerNorm, E the embedding, W, b and c of the head."""
    model = encoder(MaskedLanguageModel, dtype=torch.float64)
    ids = torch.randint(0, 37, (2, 5))
    x = model.body(ids) @ model.head.dense.weight.T + model.head.dense.bias
    x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + ENCODER.norm_eps).sqrt()
    x = x * model.head.norm.weight + model.head.norm.bias
    close(model(ids), x @ model.body.embed.weight.T + model.head.decoder.bias, 1e-9)
    assert model(ids).std() > 0.5


def test_the_decoder_is_the_embedding(MaskedLanguageModel=heads.MaskedLanguageModel):
    """One parameter, also after deepcopy, .to() and load_state_dict; a copy shares nothing with the original."""
    model = MaskedLanguageModel(ENCODER)
    copied, loaded = copy.deepcopy(model), MaskedLanguageModel(ENCODER)
    moved = copy.deepcopy(model).to(torch.float64).float()
    loaded.load_state_dict(model.state_dict())
    for m in (model, copied, moved, loaded):
        assert m.head.decoder.weight is m.body.embed.weight
        assert sum(p is m.body.embed.weight for p in m.parameters()) == 1
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(loaded(ids), model(ids)) and copied.body.embed.weight is not model.body.embed.weight


def test_the_masked_models_first_loss_is_ln_v(MaskedLanguageModel=heads.MaskedLanguageModel):
    """Untrained, it guesses: cross-entropy ln V within 0.1; its biases begin at 0."""
    torch.manual_seed(0)
    model = MaskedLanguageModel(dataclasses.replace(ENCODER, vocab_size=2048, d_model=128, d_ff=256))
    ids = torch.randint(0, 2048, (4, 32))
    assert abs(F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()) - math.log(2048)) < 0.1
    assert (model.head.dense.bias == 0).all() and (model.head.decoder.bias == 0).all()


def test_the_size_of_bert_base(MaskedLanguageModel=heads.MaskedLanguageModel):
    """BERT-base has 109,482,240 parameters: our body, 2 segment vectors (2 D) and the pooler (D^2 + D); the masked head
    adds D^2 + D, 2 D of its norm and V biases."""
    with torch.device("meta"):
        model = MaskedLanguageModel(BERT_BASE)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in (("body", model.body), ("all", model))}
    assert sizes["body"] + 2 * 768 + 768**2 + 768 == 109_482_240
    assert sizes["all"] - sizes["body"] == 768**2 + 768 + 2 * 768 + 30522


def test_a_masked_model_reads_both_ways(MaskedLanguageModel=heads.MaskedLanguageModel):
    """The last token changes the first position's logits, and the first the last's; a causal body is a MiniftError."""
    model, ids = encoder(MaskedLanguageModel), torch.randint(1, 37, (1, 8))
    for changed, seen in ((-1, 0), (0, -1)):
        other = ids.clone()
        other[0, changed] = 0
        assert (model(other) - model(ids))[0, seen].abs().max() > 1e-4
    with pytest.raises(MiniftError, match="causal=False"):
        MaskedLanguageModel(TINY)


def test_the_masked_models_body_gets_every_argument(MaskedLanguageModel=heads.MaskedLanguageModel):
    """attention_mask, position_ids and segment_ids reach the body."""
    model, ids, seen = MaskedLanguageModel(ENCODER), torch.tensor([[1, 2]]), []
    model.body.forward = lambda *args: seen.append(args) or torch.zeros(1, 2, 32)
    model(ids, attention_mask=1, position_ids=2, segment_ids=3)
    assert seen[0][0] is ids and seen[0][1:] == (1, 2, 3)


# ---- one label a text ----


def classifier(pooling="mean", SequenceClassifier=heads.SequenceClassifier, **options):
    body = encoder(Transformer, dataclasses.replace(ENCODER, **options))
    return SequenceClassifier(body, 3, pooling).eval()


def test_pooling_by_hand(pool=heads.pool):
    """mean: the average of the real tokens' states; cls: the state of the first real token."""
    hidden = torch.arange(24, dtype=torch.float64).view(2, 3, 4)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    close(pool(hidden, mask, "mean"), torch.tensor([[2.0, 3, 4, 5], [18, 19, 20, 21]], dtype=torch.float64), 1e-9)
    assert torch.equal(pool(hidden, mask, "cls"), hidden[[0, 1], [0, 1]])
    for pooling in ("mean", "cls"):
        assert torch.equal(pool(hidden, mask.int(), pooling), pool(hidden, mask, pooling))
        close(pool(hidden, None, pooling), pool(hidden, torch.ones(2, 3), pooling), 1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_padding_changes_no_label(pooling, side, SequenceClassifier=heads.SequenceClassifier):
    """Logits of padded rows are those of each row alone to 1e-6, whatever side and id the padding has."""
    model = classifier(pooling, SequenceClassifier)
    ids, mask, rows = prompts(side)
    expected = torch.cat([model(row) for row in rows])
    for pad in (0, 5):
        close(model(torch.where(mask, ids, pad), mask), expected, 1e-6)
    assert (expected[0] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_logits_are_a_linear_map_of_the_features(pooling, SequenceClassifier=heads.SequenceClassifier):
    """logits (B, L) = features W^T + b; features (B, D) are pooled hidden states; the last token counts in both."""
    model = classifier(pooling, SequenceClassifier)
    ids, mask, _ = prompts("right")
    hidden = model.body(ids, mask)
    n = mask.sum(1)
    expected = hidden[:, 0] if pooling == "cls" else torch.stack([hidden[i, :n[i]].mean(0) for i in range(3)])
    close(model.features(ids, mask), expected, 1e-6)
    close(model(ids, mask), expected @ model.head.weight.T + model.head.bias, 1e-6)
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % 37
    assert (model(other) - model(ids)).abs().max() > 1e-4


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_row_of_pads_has_no_label(pooling, SequenceClassifier=heads.SequenceClassifier):
    """A row without a real token is a MiniftError that names the row."""
    ids, mask, _ = prompts("right")
    mask[1] = False
    with pytest.raises(MiniftError, match="row 1 holds only padding"):
        classifier(pooling, SequenceClassifier)(ids, mask)


def test_a_classifier_knows_its_labels(SequenceClassifier=heads.SequenceClassifier):
    """labels are kept in order, by default "0", "1", ...; the body is used, not copied; its dtype is followed."""
    body = Transformer(ENCODER).double()
    model = SequenceClassifier(body, 2, "cls", ("no", "yes"))
    assert model.labels == ["no", "yes"] and model.pooling == "cls" and model.body is body and model.config is ENCODER
    assert SequenceClassifier(body, 3).labels == ["0", "1", "2"] and SequenceClassifier(body, 3).pooling == "mean"
    assert model(torch.tensor([[1, 2]])).dtype == torch.float64 and (model.head.bias == 0).all()


@pytest.mark.parametrize("n_label, labels", [(1, None), (0, None), (1, ["a"]), (2, ["a", "a"]), (2, ["a", "b", "b"]),
                                             (3, ["a", "b"])])
def test_labels_that_are_no_classes(n_label, labels, SequenceClassifier=heads.SequenceClassifier):
    """Fewer than two classes, a name twice, or another number of names than n_label: MiniftError."""
    with pytest.raises(MiniftError, match="at least 2 different labels"):
        SequenceClassifier(Transformer(ENCODER), n_label, labels=labels)


def test_unknown_pooling_is_refused(SequenceClassifier=heads.SequenceClassifier):
    """A pooling that does not exist: MiniftError that names those that do."""
    with pytest.raises(MiniftError, match="'max'.*mean, cls"):
        SequenceClassifier(Transformer(ENCODER), 2, "max")


def test_a_frozen_body_stays_in_evaluation_mode(SequenceClassifier=heads.SequenceClassifier):
    """train() trains the head's mode only: with dropout 0.3 two passes give the same bits, those of eval(); a body of
    which one parameter is trained has dropout again."""
    model = classifier(SequenceClassifier=SequenceClassifier, dropout=0.3)
    ids, mask, _ = prompts("right")
    expected = model.features(ids, mask)
    model.body.requires_grad_(False)
    assert model.frozen
    model.train()
    assert model.training and model.head.training and not any(module.training for module in model.body.modules())
    first, second = model.features(ids, mask), model.features(ids, mask)
    assert torch.equal(first, second) and torch.equal(first, expected)
    model.body.norm.bias.requires_grad_(True)
    model.train()
    assert not model.frozen and all(module.training for module in model.modules())
    assert not torch.equal(model.features(ids, mask), model.features(ids, mask))


def test_a_frozen_body_keeps_no_graph(SequenceClassifier=heads.SequenceClassifier):
    """Features of a frozen body carry no gradient, the logits those of the head alone; else both carry one."""
    model = classifier(SequenceClassifier=SequenceClassifier)
    ids, mask, _ = prompts("right")
    assert model.features(ids, mask).requires_grad
    with torch.no_grad():
        assert not model.features(ids, mask).requires_grad
    model.body.requires_grad_(False)
    assert not model.features(ids, mask).requires_grad
    model(ids, mask).square().sum().backward()
    assert all(p.grad is None for p in model.body.parameters()) and model.head.weight.grad.abs().max() > 0
