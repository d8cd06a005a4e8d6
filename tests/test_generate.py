"""The sampler: log-probabilities of a plain forward, masks that say what is real, settings that do what they say."""

import math
from unittest import mock

import pytest
import torch

from minift.core import generate as sampler
from minift.core.heads import LanguageModel
from minift.core.logprobs import token_logprobs
from minift.core.transformer import Transformer, TransformerConfig
from minift.errors import MiniftError

V, PAD, EOS = 23, 0, 1
START = torch.tensor([[0]])
ROTARY = TransformerConfig(vocab_size=V, context_length=40, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=48,
                           dropout=0.1)
LEARNED = TransformerConfig(vocab_size=V, context_length=40, n_layer=2, n_head=4, d_model=32, d_ff=48, norm="layernorm",
                            positions="learned", mlp="gelu_tanh", bias=True)
BOTH = pytest.mark.parametrize("config", [ROTARY, LEARNED], ids=["rotary", "learned"])


def close(got, expected, atol):
    torch.testing.assert_close(got, expected, atol=atol, rtol=0)


def model_of(config=ROTARY, seed=0, scale=6.0):
    """A model sure enough of itself (large weights) that temperature, masks and positions matter."""
    torch.manual_seed(seed)
    model = LanguageModel(config)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale if p.dim() == 2 else 1)
    return model


def prompts(lengths=(7, 3, 1, 5), seed=0):
    """Left-padded prompts of different lengths; the pads are any ids."""
    ids = torch.randint(0, V, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    return ids, mask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Fixed(torch.nn.Module):
    """A language model that gives the same logits at every position: what is sampled is known in advance."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)
        self.config = TransformerConfig(len(logits), context_length=10, n_layer=1, n_head=1, d_model=2, d_ff=1)
        self.body = Transformer(self.config)

    def head(self, hidden):
        return self.logits.expand(len(hidden), -1)


@BOTH
@pytest.mark.parametrize("temperature", [0, 0.7, 1.0, 1.5])
def test_logprobs_are_those_of_a_plain_forward(config, temperature, generate=sampler.generate):
    """Whatever the prompts' lengths, logprobs = token_logprobs(logits / temperature) of one pass over the result."""
    model, (ids, mask) = model_of(config), prompts()
    out = generate(model, ids, mask, max_new_tokens=12, temperature=temperature, eos_id=EOS, pad_id=PAD,
                   generator=seeded())
    logits = model.eval()(out.input_ids, out.attention_mask)
    expected = token_logprobs(logits / (temperature or 1), out.input_ids) * out.response_mask[:, 1:]
    close(out.logprobs, expected.detach(), 1e-5)
    assert out.response_mask.sum() > 20 and out.logprobs[out.response_mask[:, 1:]].max() < 0


@BOTH
def test_a_batch_writes_what_each_prompt_writes_alone(config, generate=sampler.generate):
    """Greedy continuations in a left-padded batch are those of a loop without cache, mask or batch."""
    model, (ids, mask) = model_of(config).eval(), prompts()
    for seed in (0, 1):
        padded = torch.where(mask, ids, prompts(seed=seed)[0])
        out = generate(model, padded, mask, max_new_tokens=10, temperature=0, eos_id=None, pad_id=PAD)
        for row in range(len(ids)):
            alone = ids[row][mask[row]]
            for _ in range(10):
                alone = torch.cat((alone, model(alone[None])[0, -1].argmax()[None]))
            assert out.input_ids[row][out.attention_mask[row]].tolist() == alone.tolist()


def test_prompts_are_padded_on_the_left(left_pad=sampler.left_pad):
    """The last column is real in each row, and the mask marks exactly the prompts."""
    input_ids, attention_mask = left_pad([[5, 6, 7], [8]], 9)
    assert input_ids.tolist() == [[5, 6, 7], [9, 9, 8]]
    assert attention_mask.tolist() == [[True, True, True], [False, False, True]]


def test_the_masks_say_what_is_real(generate=sampler.generate):
    """A row is pads, prompt, response with its EOS, pad_id; attention_mask marks the middle two."""
    model, (ids, mask) = model_of(), prompts((4, 2, 3, 1, 4, 3, 2, 4))
    out = generate(model, ids, mask, max_new_tokens=30, temperature=1.5, eos_id=EOS, pad_id=PAD, generator=seeded(3))
    T = ids.shape[1]
    assert torch.equal(out.input_ids[:, :T], ids) and torch.equal(out.attention_mask[:, :T], mask)
    assert not out.response_mask[:, :T].any() and out.logprobs.shape[1] == out.input_ids.shape[1] - 1
    ended = 0
    for row in range(len(ids)):
        written, real, attended = (x[row, T:].tolist() for x in (out.input_ids, out.response_mask, out.attention_mask))
        length = written.index(EOS) + 1 if EOS in written else len(written)
        ended += length < len(written)
        assert real == attended == [True] * length + [False] * (len(written) - length)
        assert written[length:] == [PAD] * (len(written) - length)
    assert ended >= 2
    assert (out.logprobs[~out.response_mask[:, 1:]] == 0).all()


def test_it_stops_when_every_row_has_ended(generate=sampler.generate):
    """A model that always writes EOS writes it once, as a real token; with eos_id=None it writes on."""
    model, ids = Fixed([0.0, 2.0]), torch.tensor([[0, 0], [0, 0]])
    out = generate(model, ids, max_new_tokens=5, temperature=0, eos_id=1, pad_id=0)
    assert out.input_ids.tolist() == [[0, 0, 1]] * 2 and out.response_mask.tolist() == [[False, False, True]] * 2
    close(out.logprobs[:, -1], torch.full((2,), -math.log(1 + math.exp(-2))), 1e-6)
    out = generate(model, ids, max_new_tokens=5, temperature=0, eos_id=None, pad_id=0)
    assert out.input_ids.tolist() == [[0, 0] + [1] * 5] * 2


@pytest.mark.parametrize("same", [{"temperature": 1e-6}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_greedy_by_other_names(same, generate=sampler.generate):
    """temperature -> 0, top_k = 1 and top_p -> 0 all write what temperature = 0 writes."""
    model, (ids, mask) = model_of(), prompts()
    greedy = generate(model, ids, mask, max_new_tokens=15, temperature=0, eos_id=EOS, pad_id=PAD)
    out = generate(model, ids, mask, max_new_tokens=15, eos_id=EOS, pad_id=PAD, generator=seeded(), **same)
    assert torch.equal(out.input_ids, greedy.input_ids) and torch.equal(out.response_mask, greedy.response_mask)


def test_settings_that_keep_everything_change_nothing(generate=sampler.generate):
    """The same seed writes the same ids, also with top_k >= V and top_p = 1; another seed writes others."""
    model, (ids, mask) = model_of(), prompts()

    def write(seed=0, **settings):
        return generate(model, ids, mask, max_new_tokens=15, eos_id=None, pad_id=PAD, generator=seeded(seed),
                        **settings).input_ids

    base = write()
    for settings in ({}, {"top_k": V}, {"top_k": 10 * V}, {"top_p": 1.0}, {"top_k": V, "top_p": 1.0}):
        assert torch.equal(write(**settings), base)
    assert not torch.equal(write(seed=1), base)


@pytest.mark.parametrize(("settings", "kept"), [
    ({}, [0.1, 0.4, 0.2, 0.3]), ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]), ({"top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
    ({"top_p": 0.35}, [0, 1, 0, 0]), ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
    ({"top_k": 3, "top_p": 0.75}, [0, 4 / 7, 0, 3 / 7]),
    ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
], ids=str)
def test_sampled_frequencies(settings, kept, generate=sampler.generate):
    """Odds 1 : 4 : 2 : 3 are sampled, or what top_k, then top_p, keep of them; logprobs stay those of all four."""
    probs = torch.tensor([0.1, 0.4, 0.2, 0.3])
    n = 20_000
    out = generate(Fixed(probs.log().tolist()), START.repeat(n, 1), max_new_tokens=1, eos_id=None, pad_id=0,
                   generator=seeded(), **settings)
    written = out.input_ids[:, -1]
    for token, p in enumerate(kept):
        share = (written == token).double().mean().item()
        assert abs(share - p) <= 4 * math.sqrt(p * (1 - p) / n)              # exactly 0 or 1 where nothing else is left
    whole = (probs.log() / settings.get("temperature", 1)).log_softmax(-1)
    close(out.logprobs[:, -1], whole[written], 1e-6)


@pytest.mark.parametrize("top_p, kept", [(0.5, 1), (0.5 + 1e-6, 2), (0.75, 2), (0.75 + 1e-6, 3), (0.875, 3)])
def test_the_fewest_that_hold_p(top_p, kept, keep_likely=sampler.keep_likely):
    """Probabilities 1/2, 1/4, 1/8, 1/8 add up exactly: the first alone holds .5, so at .5 no second one is kept."""
    logprobs = torch.tensor([[0.125, 0.5, 0.125, 0.25]], dtype=torch.float64).log()
    assert torch.isfinite(keep_likely(logprobs, None, top_p)).sum().item() == kept


def test_an_impossible_id_is_never_drawn(draw=sampler.draw):
    """Even where the random number is exactly 0, or the largest below 1, an id of probability 0 is not drawn."""
    probs = torch.tensor([[0.0, 0.7, 0.3, 0.0]])
    for point, expected in ((0.0, 1), (0.5, 1), (0.8, 2), (1 - 2**-24, 2)):
        with mock.patch("torch.rand", return_value=torch.tensor([[point]])):
            assert draw(probs, None).tolist() == [expected]


def test_ties_keep_exactly_k(generate=sampler.generate):
    """Four equal ids and top_k = 2: the two smaller ids are kept, not all that are as likely as the second."""
    out = generate(Fixed([1.0] * 4), START.repeat(500, 1), max_new_tokens=1, top_k=2, eos_id=None, pad_id=0,
                   generator=seeded())
    assert set(out.input_ids[:, -1].tolist()) == {0, 1}


@pytest.mark.parametrize("eos_id", [None, EOS])
def test_no_new_tokens_is_the_prompt(eos_id, generate=sampler.generate):
    """max_new_tokens = 0 returns the prompt and its mask; the logprobs are all 0."""
    ids, mask = prompts()
    out = generate(model_of(), ids, mask, max_new_tokens=0, eos_id=eos_id, pad_id=PAD)
    assert torch.equal(out.input_ids, ids) and torch.equal(out.attention_mask, mask)
    assert not out.response_mask.any() and torch.equal(out.logprobs, torch.zeros(4, 6))


def test_it_leaves_no_trace(generate=sampler.generate):
    """Dropout is off while sampling; afterwards modes and prompt are as before, and nothing carries a gradient."""
    model, (ids, mask) = model_of(), prompts()
    model.body.layers[0].eval()
    before = ids.clone()
    first = generate(model, ids, mask, max_new_tokens=8, temperature=0, eos_id=None, pad_id=PAD)
    second = generate(model, ids, mask, max_new_tokens=8, temperature=0, eos_id=None, pad_id=PAD)
    assert torch.equal(first.logprobs, second.logprobs) and torch.equal(ids, before)
    assert model.training and model.body.layers[1].training and not model.body.layers[0].training
    assert not first.logprobs.requires_grad and not first.logprobs.is_inference()
    with pytest.raises(MiniftError):
        generate(model, torch.full_like(ids, V), max_new_tokens=8, eos_id=None, pad_id=PAD)
    assert model.training


def test_each_step_costs_one_token(generate=sampler.generate):
    """After the prompt the body sees one token a step, and the head only the last position."""
    model, (ids, mask) = model_of(), prompts()
    fed, scored = [], []
    model.body.register_forward_pre_hook(lambda module, args: fed.append(args[0].shape[1]))
    model.head.register_forward_pre_hook(lambda module, args: scored.append(args[0].shape))
    generate(model, ids, mask, max_new_tokens=6, eos_id=None, pad_id=PAD)
    assert fed == [7, 1, 1, 1, 1, 1] and scored == [(4, 32)] * 6


def test_a_prompt_without_pads_needs_no_mask(generate=sampler.generate):
    """attention_mask=None means that all is real: the same as a mask of ones."""
    model, (ids, _) = model_of(), prompts()
    a = generate(model, ids, max_new_tokens=9, eos_id=EOS, pad_id=PAD, generator=seeded())
    b = generate(model, ids, torch.ones_like(ids), max_new_tokens=9, eos_id=EOS, pad_id=PAD, generator=seeded())
    assert torch.equal(a.input_ids, b.input_ids) and torch.equal(a.attention_mask, b.attention_mask)
    assert a.attention_mask[:, :7].all()


def test_the_whole_context_can_be_written(generate=sampler.generate):
    """Prompt + max_new_tokens may fill the context to the last token."""
    out = generate(model_of(LEARNED), prompts()[0], max_new_tokens=33, eos_id=None, pad_id=PAD)
    assert out.input_ids.shape == (4, 40)


def test_stream_writes_what_generate_writes(stream=sampler.stream, generate=sampler.generate):
    """What generate writes at the same seed, one int at a time, the EOS last; closed early, it leaves no trace."""
    model, ids = model_of(), prompts()[0][:1]
    for seed in range(4):
        whole = generate(model, ids, max_new_tokens=30, temperature=1.5, eos_id=EOS, pad_id=PAD, generator=seeded(seed))
        pieces = list(stream(model, ids[0], max_new_tokens=30, temperature=1.5, eos_id=EOS, generator=seeded(seed)))
        assert all(type(piece) is int for piece in pieces) and pieces == whole.input_ids[0, 7:].tolist()
        assert model.training
    graphs = []
    model.head.register_forward_hook(lambda module, args, out: graphs.append(out.requires_grad))
    started = stream(model, ids, max_new_tokens=30)
    next(started), next(started)
    assert graphs == [False, False] and torch.is_grad_enabled() and not model.training
    started.close()
    assert model.training
    with pytest.raises(MiniftError, match="one prompt"):
        stream(model, prompts()[0], max_new_tokens=1)
    with pytest.raises(MiniftError, match="beyond the context"):             # at the call, not at the first id
        stream(model, ids, max_new_tokens=34)


@pytest.mark.parametrize(("wrong", "says"), [
    ({"max_new_tokens": -1}, "max_new_tokens is -1"), ({"max_new_tokens": 34}, "beyond the context of 40"),
    ({"temperature": -0.5}, "temperature is -0.5"), ({"temperature": math.nan}, "temperature is nan"),
    ({"temperature": math.inf}, "temperature is inf"), ({"top_k": 0}, "top_k is 0"), ({"top_k": 2.5}, "top_k is 2.5"),
    ({"top_p": 0.0}, "top_p is 0.0"), ({"top_p": 1.1}, "top_p is 1.1"),
    ({"attention_mask": torch.tensor([[1, 0]] * 4)}, "attention_mask has shape"),
    ({"attention_mask": torch.tensor([[True] * 7, [True] * 6 + [False]] * 2)}, "row 1 ends with padding"),
    ({"input_ids": START[:, :0]}, r"shape \(1, 0\)"), ({"input_ids": torch.tensor([1, 2])}, r"shape \(2,\)"),
    ({"input_ids": torch.tensor([[1, V]])}, "token id 23 at row 0, column 1"),
], ids=str)
def test_bad_settings_are_refused(wrong, says, generate=sampler.generate):
    """Settings that cannot work are MiniftErrors before anything is written."""
    settings = {"input_ids": prompts()[0], "max_new_tokens": 3, "eos_id": EOS, "pad_id": PAD, **wrong}
    with pytest.raises(MiniftError, match=says):
        generate(model_of(), settings.pop("input_ids"), **settings)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_logits_are_refused(broken, generate=sampler.generate):
    """A model that gives NaN or infinity is a MiniftError, not a random id; -inf just bans an id."""
    with pytest.raises(MiniftError, match="not finite"):
        generate(Fixed([0.0, broken, 0.0]), START, max_new_tokens=1, eos_id=None, pad_id=0)
    banned = generate(Fixed([-math.inf, 0.0]), START, max_new_tokens=3, eos_id=None, pad_id=0)
    assert banned.input_ids.tolist() == [[0, 1, 1, 1]]
