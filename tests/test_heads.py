"""Heads: tying, the first loss, sizes of real models, one score a token."""

import copy
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
