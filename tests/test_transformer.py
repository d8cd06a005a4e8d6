"""The body: parity with attention written out by hand, what each token may see, positions, caches, refusals."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from minift.core import attention, transformer
from minift.core.attention import KVCache
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError

LLAMA = TransformerConfig(vocab_size=37, context_length=32, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=48)
GPT2 = TransformerConfig(vocab_size=37, context_length=32, n_layer=2, n_head=4, d_model=32, d_ff=48, norm="layernorm",
                         positions="learned", mlp="gelu_tanh", bias=True)
BERT = TransformerConfig(vocab_size=37, context_length=32, n_layer=2, n_head=4, d_model=32, d_ff=48, causal=False,
                         norm_first=False, norm="layernorm", norm_eps=1e-12, positions="learned", mlp="gelu", bias=True)
DECODERS = pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
FAMILIES = pytest.mark.parametrize("config", [LLAMA, GPT2, BERT], ids=["llama", "gpt2", "bert"])


def close(got, expected, atol):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def make(config, Transformer=transformer.Transformer, seed=0, scale=4.0, dtype=torch.float32):
    """A body with weights large enough (std 0.08) that every mistake shows, and biases that are not zero."""
    torch.manual_seed(seed)
    model = Transformer(config).to(dtype).eval()
    for name, p in model.named_parameters():
        p.data = torch.randn_like(p) * 0.1 + ("norm" in name and "weight" in name) if p.dim() == 1 else p.data * scale
    return model


def ids_of(*shape, seed=1, vocab_size=37):
    return torch.randint(0, vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def by_hand(model, input_ids):
    """One row of a pre-norm decoder by the papers' formulas, token by token, head by head; rotary by complex turns."""
    c = model.config
    x = model.embed.weight[input_ids]                                        # (T, D)
    if c.positions == "learned":
        x = x + model.positions.weight[: len(x)]

    def norm(module, x):
        if c.norm == "rmsnorm":
            return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * module.weight
        variance = x.var(-1, keepdim=True, unbiased=False)
        return (x - x.mean(-1, keepdim=True)) / (variance + c.norm_eps).sqrt() * module.weight + module.bias

    def linear(module, x):
        return x @ module.weight.T + (module.bias if c.bias else 0)

    def turn(vector, position):
        half = c.d_head // 2
        pairs = torch.complex(vector[:half], vector[half:])
        angle = [position / c.rope_theta ** (2 * i / c.d_head) for i in range(half)]
        pairs = pairs * torch.polar(torch.ones(half, dtype=x.dtype), torch.tensor(angle, dtype=x.dtype))
        return torch.cat((pairs.real, pairs.imag))

    def act(x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    for block in model.layers:
        h = norm(block.attn_norm, x)
        projections = (block.attn.q_proj, block.attn.k_proj, block.attn.v_proj)
        q, k, v = (linear(m, h).unflatten(-1, (-1, c.d_head)) for m in projections)    # (T, H or K, E)
        out = torch.zeros(len(x), c.n_head, c.d_head, dtype=x.dtype)
        for t in range(len(x)):
            for head in range(c.n_head):
                shared = head // (c.n_head // c.n_kv_head)
                rotary = turn if c.positions == "rotary" else (lambda vector, position: vector)
                scores = torch.stack([rotary(q[t, head], t) @ rotary(k[s, shared], s) for s in range(t + 1)])
                weights = torch.exp(scores / math.sqrt(c.d_head))
                out[t, head] = (weights / weights.sum()) @ v[: t + 1, shared]
        x = x + linear(block.attn.o_proj, out.flatten(1))
        h = norm(block.mlp_norm, x)
        if c.mlp == "swiglu":
            gate = linear(block.mlp.gate_proj, h)
            x = x + linear(block.mlp.down_proj, gate / (1 + torch.exp(-gate)) * linear(block.mlp.up_proj, h))
        else:
            x = x + linear(block.mlp.down_proj, act(linear(block.mlp.up_proj, h)))
    return norm(model.norm, x)


@DECODERS
def test_equals_the_formulas_written_out(config, Transformer=transformer.Transformer):
    """The body equals softmax(q k^T / sqrt(E)) v, the norms and the MLP of the papers, computed token by token."""
    model = make(config, Transformer, dtype=torch.float64)
    input_ids = ids_of(1, 7)
    close(model(input_ids)[0], by_hand(model, input_ids[0]), 1e-9)


def test_encoder_equals_torchs_own(Transformer=transformer.Transformer):
    """With causal=False, norm_first=False the stack is torch.nn.TransformerEncoder behind a normalised embedding."""
    model = make(BERT, Transformer, dtype=torch.float64)
    layer = nn.TransformerEncoderLayer(32, 4, 48, dropout=0.0, activation="gelu", layer_norm_eps=1e-12,
                                       batch_first=True, norm_first=False)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double().eval()
    for theirs, ours in zip(encoder.layers, model.layers):
        qkv = (ours.attn.q_proj, ours.attn.k_proj, ours.attn.v_proj)
        theirs.self_attn.in_proj_weight.data = torch.cat([m.weight for m in qkv]).detach()
        theirs.self_attn.in_proj_bias.data = torch.cat([m.bias for m in qkv]).detach()
        for a, b in ((theirs.self_attn.out_proj, ours.attn.o_proj), (theirs.linear1, ours.mlp.up_proj),
                     (theirs.linear2, ours.mlp.down_proj), (theirs.norm1, ours.attn_norm),
                     (theirs.norm2, ours.mlp_norm)):
            a.load_state_dict(b.state_dict())
    input_ids = ids_of(2, 9)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    x = model.norm(model.embed(input_ids) + model.positions.weight[:9])
    expected = encoder(x, src_key_padding_mask=~mask)
    close(model(input_ids, mask)[mask], expected[mask], 1e-9)


def test_rotary_turns_the_half_split_pairs(rotary_angles=attention.rotary_angles, rotate=attention.rotate):
    """Position 1, width 4: [1, 2, 3, 4] turns by the angles 1 and 0.01 in the pairs (0, 2) and (1, 3)."""
    cos, sin = rotary_angles(torch.tensor([[1]]), 4, 10000.0)
    turned = rotate(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4), cos, sin).flatten()
    expected = torch.tensor([-1.984111, 1.959901, 2.462378, 4.019800])
    close(turned, expected, 1e-5)


def test_rotary_keeps_length_and_sees_only_distance(rotary_angles=attention.rotary_angles, rotate=attention.rotate):
    """|R_m q| = |q|, and <R_m q, R_n k> is the same for every m, n with the same m - n."""
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def at(x, position):
        return rotate(x, *rotary_angles(torch.tensor([[position]]), 8, 10000.0, torch.float64)).flatten()

    assert abs(at(q, 17).norm() - q.norm()) < 1e-9
    products = [at(q, n + 5) @ at(k, n) for n in (0, 1, 10, 100)]
    assert max(products) - min(products) < 1e-9 and abs(products[0] - at(q, 0) @ at(k, 0)) > 1e-3


def test_stretched_waves(stretch=attention.stretch, rotary_angles=attention.rotary_angles):
    """Waves longer than context / low tokens become `factor` times as long, those shorter than context / high stay, and
    in between the share kept grows evenly with the turns a wave makes; the angles are those of the longer waves."""
    E, theta, (factor, low, high, context) = 64, 5e5, (8.0, 1.0, 4.0, 512.0)
    frequency = torch.tensor([theta ** (-2 * i / E) for i in range(E // 2)], dtype=torch.float64)
    found, kinds = stretch(frequency, factor, low, high, context), set()
    for f, by in zip(frequency.tolist(), found.tolist()):
        length = 2 * math.pi / f
        if length > context / low or length < context / high:
            expected, kind = (factor, "long") if length > context / low else (1.0, "short")
        else:
            kept = (context / length - low) / (high - low)
            expected, kind = 1 / ((1 - kept) / factor + kept), "between"
        kinds.add(kind)
        assert by == pytest.approx(expected, rel=1e-9)
    assert kinds == {"long", "between", "short"}
    cos, sin = rotary_angles(torch.tensor([[37]]), E, theta, torch.float64, (factor, low, high, context))
    angle = 37 * frequency / found
    torch.testing.assert_close(cos[0, 0, 0], torch.cat((angle, angle)).cos(), rtol=0, atol=1e-9)
    torch.testing.assert_close(sin[0, 0, 0], torch.cat((angle, angle)).sin(), rtol=0, atol=1e-9)


def test_rotary_angles_survive_half_precision(rotary_angles=attention.rotary_angles):
    """In bfloat16 the angle of position 999 is still worked out in float32: cos is off by a rounding, not by a turn."""
    cos, _ = rotary_angles(torch.tensor([[999]]), 2, 10000.0, torch.bfloat16)
    assert cos.dtype == torch.bfloat16 and abs(cos.flatten()[0].item() - math.cos(999)) < 4e-3


@pytest.mark.parametrize("causal", [True, False])
def test_who_sees_whom(causal, visible=attention.visible):
    """A token sees itself always (no row of the softmax is empty), else what is real, of its segment and not later."""
    real = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0]]).bool()
    segment = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    allowed = visible(5, 5, causal, real, segment, "cpu")
    for b in range(2):
        for t in range(5):
            for s in range(5):
                expected = s == t or (real[b, s] and segment[b, s] == segment[b, t] and (s < t or not causal))
                assert allowed[b, 0, t, s] == bool(expected)
    assert torch.equal(visible(2, 5, causal, real, None, "cpu"), visible(5, 5, causal, real, None, "cpu")[:, :, 3:])


@FAMILIES
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_the_weights_are_those_of_the_layer(config, padded, attention_weights=attention.attention_weights):
    """The weights times the layer's values, through o_proj, are what the layer gives; the hidden is not seen."""
    model, input_ids = make(config, dtype=torch.float64), ids_of(2, 9)
    mask = torch.arange(9) < torch.tensor([[9], [5]]) if padded else None
    seen = {}
    attn = model.layers[1].attn
    attn.register_forward_hook(lambda module, args, out: seen.update(x=args[0], out=out))
    weights = attention_weights(model, input_ids, mask, layer=1)
    v = attn.v_proj(seen["x"]).unflatten(-1, (-1, config.d_head)).repeat_interleave(4 // config.n_kv_head, dim=2)
    close(attn.o_proj(torch.einsum("bhts,bshe->bthe", weights, v).flatten(2)), seen["out"], 1e-9)
    assert weights.shape == (2, 4, 9, 9) and not attn._forward_pre_hooks
    close(weights.sum(-1), torch.ones(2, 4, 9, dtype=torch.float64), 1e-9)
    if config.causal:
        assert (weights.triu(1) == 0).all()


@DECODERS
def test_the_future_changes_nothing(config, Transformer=transformer.Transformer):
    """Replacing every token after t leaves the hidden states up to t the same to the last bit."""
    model, input_ids = make(config, Transformer), ids_of(2, 12)
    hidden = model(input_ids)
    for t in range(11):
        other = input_ids.clone()
        other[:, t + 1:] = (other[:, t + 1:] + 1 + ids_of(2, 11 - t, vocab_size=36)) % 37
        changed = (model(other) - hidden).abs()
        assert changed[:, : t + 1].max() == 0
        assert changed[:, t + 1:].amax(-1).min() > 1e-3


@DECODERS
def test_the_future_gets_no_gradient(config, Transformer=transformer.Transformer):
    """The gradient of hidden[t] is exactly 0 at the embeddings after t, and not 0 at any embedding up to t."""
    model, input_ids = make(config, Transformer), ids_of(1, 12)
    seen = []
    model.embed.register_forward_hook(lambda module, args, out: seen.append(out))
    hidden = model(input_ids)
    for t in range(12):
        weights = torch.randn(32, generator=torch.Generator().manual_seed(t))
        (gradient,) = torch.autograd.grad((hidden[0, t] * weights).sum(), seen[0], retain_graph=True)
        size = gradient[0].abs().amax(-1)                                    # (T,)
        assert size[: t + 1].min() > 1e-5 and (size[t + 1:] == 0).all()


def test_an_encoder_sees_the_future(Transformer=transformer.Transformer):
    """Without the causal mask, changing the last token changes every hidden state."""
    model, input_ids = make(BERT, Transformer), ids_of(1, 8)
    other = input_ids.clone()
    other[0, -1] = (other[0, -1] + 1) % 37
    assert (model(other) - model(input_ids)).abs().amax(-1).min() > 1e-4


@FAMILIES
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(config, side, Transformer=transformer.Transformer):
    """A row padded on either side, with whatever ids, has the hidden states of the row alone, to 1e-5."""
    model = make(config, Transformer)
    lengths, T = [9, 4, 1], 9
    rows = [ids_of(n, seed=n) for n in lengths]
    for pad_seed in (0, 1):
        input_ids = ids_of(3, T, seed=100 + pad_seed)                        # the pads are any ids
        mask = torch.zeros(3, T, dtype=torch.bool)
        for i, row in enumerate(rows):
            where = slice(T - len(row), T) if side == "left" else slice(0, len(row))
            input_ids[i, where], mask[i, where] = row, True
        hidden = model(input_ids, mask)
        assert hidden.isfinite().all()
        for i, row in enumerate(rows):
            close(hidden[i][mask[i]], model(row[None])[0], 1e-5)


@FAMILIES
def test_pads_send_no_gradient(config, Transformer=transformer.Transformer):
    """The embeddings of pads get a gradient of exactly 0 from the real tokens; a row of pads only gives no NaN."""
    model, input_ids = make(config, Transformer), ids_of(3, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]])    # ints are masks as well
    seen = []
    model.embed.register_forward_hook(lambda module, args, out: seen.append(out))
    hidden = model(input_ids, mask)
    assert hidden.isfinite().all()
    (gradient,) = torch.autograd.grad(hidden[mask.bool()].square().sum(), seen[0])
    assert gradient.isfinite().all() and (gradient[~mask.bool()] == 0).all() and (gradient[0, 2:] != 0).any()


@DECODERS
def test_positions_count_real_tokens(config, Transformer=transformer.Transformer):
    """The default position is the number of real tokens before: given, it changes nothing; another one does."""
    model, input_ids = make(config, Transformer), ids_of(1, 6)
    mask = torch.tensor([[False, True, False, True, True, True]])            # a hole counts no position
    explicit = torch.tensor([[0, 0, 1, 1, 2, 3]])
    hidden = model(input_ids, mask)
    close(model(input_ids, mask, position_ids=explicit)[mask], hidden[mask], 1e-6)
    close(model(input_ids[:, [1, 3, 4, 5]]), hidden[:, [1, 3, 4, 5]], 1e-5)
    assert (model(input_ids, mask, position_ids=torch.arange(6)[None]) - hidden)[mask].abs().max() > 1e-3


def pack_two_rows():
    segment_ids = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, -1, -1], [0, 0, 1, 1, 1, 1, 1, 1, 1, 1]])
    position_ids = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 0, 0, 0], [0, 1, 0, 1, 2, 3, 4, 5, 6, 7]])
    return ids_of(2, 10), segment_ids, position_ids


@FAMILIES
@pytest.mark.parametrize("given", [True, False], ids=["positions", "default"])
def test_packed_samples_are_alone(config, given, Transformer=transformer.Transformer):
    """Packed with segment_ids, each sample has the hidden states that it has alone; its positions restart at 0."""
    model = make(config, Transformer)
    input_ids, segment_ids, position_ids = pack_two_rows()
    hidden = model(input_ids, position_ids=position_ids if given else None, segment_ids=segment_ids)
    for row in range(2):
        for segment in segment_ids[row].unique().tolist():
            here = segment_ids[row] == segment
            if segment >= 0:
                close(hidden[row, here], model(input_ids[row, here][None])[0], 1e-5)


@DECODERS
def test_packed_samples_need_their_mask(config, Transformer=transformer.Transformer):
    """Without segment_ids the same row gives other numbers (the test above can fail); with a mask as well, the same."""
    model = make(config, Transformer)
    input_ids, segment_ids, position_ids = pack_two_rows()
    packed = model(input_ids, position_ids=position_ids, segment_ids=segment_ids)
    assert (model(input_ids, position_ids=position_ids) - packed)[segment_ids == 1].abs().max() > 1e-2
    real = segment_ids >= 0
    masked = model(input_ids, real, segment_ids=segment_ids)
    close(masked[real], packed[real], 1e-5)
    real[0, 4] = real[1, 0] = False                                          # pads inside segments count no position
    for row, segment in ((0, 1), (1, 0)):
        here = real[row] & (segment_ids[row] == segment)
        close(model(input_ids, real, segment_ids=segment_ids)[row, here], model(input_ids[row, here][None])[0], 1e-5)


@DECODERS
@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
def test_a_cache_changes_nothing(config, padded, Transformer=transformer.Transformer):
    """Fed in pieces (4, 1, 1, 3, 1 tokens) through a KVCache, the hidden states are those of one pass, to 1e-5."""
    model, input_ids = make(config, Transformer), ids_of(3, 10)
    mask = torch.ones(3, 10, dtype=torch.bool)
    if padded:
        mask[0, :3] = mask[1, :1] = False
    full, pieces = model(input_ids, mask), []
    with torch.no_grad():
        cache = KVCache(config, 3, 12)
        for start, end in ((0, 4), (4, 5), (5, 6), (6, 9), (9, 10)):
            pieces.append(model(input_ids[:, start:end], mask[:, :end] if padded else None, cache=cache))
            assert cache.length == end
    close(torch.cat(pieces, 1)[mask], full[mask], 1e-5)


def test_dropout_is_for_training_only(Transformer=transformer.Transformer):
    """In train mode two passes differ, in eval mode not; with dropout 0 the modes are the same."""
    input_ids = ids_of(2, 8)
    wet = Transformer(TransformerConfig(37, 32, 2, 4, 32, 48, dropout=0.3))
    assert not torch.equal(wet.train()(input_ids), wet(input_ids))
    assert torch.equal(wet.eval()(input_ids), wet(input_ids))
    sight = attention.Sight(None, True, None)
    attn, x = wet.train().layers[0].attn, torch.ones(1, 8, 32)
    assert not torch.equal(attn(x, sight), attn(x, sight))                   # the attention weights are dropped too
    for block in wet.layers:
        block.attn.o_proj.weight.data.zero_(), block.mlp.down_proj.weight.data.zero_()
    assert not torch.equal(wet(input_ids), wet(input_ids))                   # and so is the embedding
    dry = make(LLAMA, Transformer)
    assert torch.equal(dry.train()(input_ids), dry.eval()(input_ids))


@FAMILIES
def test_checkpointing_changes_memory_only(config, Transformer=transformer.Transformer):
    """Each block runs twice, less is kept for the backward pass, and loss and gradients are bit for bit the same,
    with dropout, padding, and a frozen embedding under weights that are trained."""
    ids, mask, found = ids_of(3, 12), torch.ones(3, 12, dtype=torch.bool), []
    mask[0, 9:] = False
    for checkpointing in (False, True):
        model = make(replace(config, dropout=0.3), Transformer).train()
        model.embed.requires_grad_(False)
        model.checkpointing, runs, kept = checkpointing, [], []
        model.layers[0].mlp.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            loss = model(ids, mask)[mask].square().mean()
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
        assert len(runs) == 1 + checkpointing
        found[-1].append(sum(kept))
    *plain, kept_plain = found[0]
    *again, kept_again = found[1]
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)) and len(plain) > 10
    assert 4 * kept_again < kept_plain


def test_initialisation(Transformer=transformer.Transformer):
    """Weights have std 0.02, the two projections into the stream 0.02 / sqrt(2 n_layer); biases are 0."""
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(500, 64, 8, 4, 128, 256, norm="layernorm", positions="learned", mlp="gelu",
                                          bias=True))
    for name, p in model.named_parameters():
        if p.dim() == 2:
            std = 0.02 / 4 if "o_proj" in name or "down_proj" in name else 0.02
            assert abs(p.std() / std - 1) < 0.05, name
        else:
            assert torch.equal(p, torch.full_like(p, float("norm" in name and "weight" in name))), name


def test_grouped_heads_have_smaller_keys(Transformer=transformer.Transformer):
    """K key/value heads make k_proj and v_proj (K E, D), and the cache K heads wide."""
    attn = Transformer(LLAMA).layers[0].attn
    assert attn.k_proj.weight.shape == attn.v_proj.weight.shape == (16, 32)
    assert attn.q_proj.weight.shape == attn.o_proj.weight.shape == (32, 32)
    assert KVCache(LLAMA, 3, 5).keys.shape == (2, 3, 2, 5, 8)


def test_a_copy_is_apart(Transformer=transformer.Transformer):
    """A deep copy gives the same numbers and shares no storage."""
    model = make(LLAMA, Transformer)
    other = copy.deepcopy(model)
    assert torch.equal(other(ids_of(1, 5)), model(ids_of(1, 5)))
    ours = {p.data_ptr() for p in model.parameters()}
    assert not ours & {p.data_ptr() for p in other.parameters()}


@pytest.mark.parametrize(("wrong", "says"), [
    ({"n_layer": 0}, "n_layer is 0"), ({"vocab_size": -1}, "vocab_size is -1"), ({"d_ff": 1.5}, "d_ff is 1.5"),
    ({"n_head": 5}, "not a multiple of n_head 5"), ({"n_kv_head": 3}, "not a multiple of n_kv_head 3"),
    ({"n_kv_head": 0}, "n_kv_head is 0"), ({"d_model": 36}, "d_model / n_head is 9"),
    ({"norm": "batchnorm"}, "layernorm, rmsnorm"),
    ({"positions": "none"}, "learned, rotary"), ({"mlp": "relu"}, "swiglu, gelu, gelu_tanh"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"dropout": -0.1}, "dropout is -0.1"), ({"norm_eps": 0.0}, "norm_eps"), ({"rope_theta": -1.0}, "rope_theta"),
    ({"rope_scaling": (8.0, 4.0, 1.0, 8192)}, "rope_scaling"), ({"rope_scaling": (8.0,)}, "rope_scaling"),
])
def test_impossible_configs_are_refused(wrong, says, Config=transformer.TransformerConfig):
    """A config that cannot be built is a MiniftError that names the number."""
    good = {"vocab_size": 37, "context_length": 32, "n_layer": 2, "n_head": 4, "d_model": 32, "d_ff": 48}
    with pytest.raises(MiniftError, match=says):
        Config(**{**good, **wrong})
    config = Config(**good)
    assert config.n_kv_head == 4 and config.d_head == 8


def test_bad_inputs_are_refused(Transformer=transformer.Transformer):
    """Ids, lengths, masks and positions that cannot be are MiniftErrors that say where; edges are accepted."""
    model = make(LLAMA, Transformer)
    learned = make(GPT2, Transformer)
    input_ids = ids_of(4, 32)
    model(input_ids), learned(input_ids)                                     # the full context is allowed
    model(input_ids.int())
    for value in (37, -1):
        bad = input_ids.clone()
        bad[3, 7] = value
        with pytest.raises(MiniftError, match=f"token id {value} at row 3, column 7; the vocabulary has 37"):
            model(bad)
    ones = torch.ones(4, 32, dtype=torch.bool)
    for call, says in (
        (lambda: model(ids_of(1, 33)), "length 33 is beyond the context of 32"),
        (lambda: model(input_ids.float()), "float32"),
        (lambda: model(input_ids[0]), r"shape \(32,\)"),
        (lambda: model(input_ids, ones[:, 1:]), r"attention_mask has shape \(4, 31\); expected \(4, 32\)"),
        (lambda: model(input_ids, segment_ids=input_ids[:, 1:]), "segment_ids has shape"),
        (lambda: model(input_ids, position_ids=input_ids[:, 1:]), "position_ids has shape"),
        (lambda: learned(input_ids[:, :2], position_ids=torch.tensor([[0, 32]])), "position 32 at row 0, column 1"),
        (lambda: model(input_ids, cache=KVCache(LLAMA, 4, 8)), "beyond the cache of 8"),
        (lambda: model(input_ids, segment_ids=input_ids, cache=KVCache(LLAMA, 4, 32)), "cache"),
        (lambda: make(BERT, Transformer)(input_ids, cache=KVCache(BERT, 4, 32)), "causal"),
    ):
        with pytest.raises(MiniftError, match=says):
            call()
