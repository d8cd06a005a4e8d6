"""Loss on the response only: the shift, the mask, the mean, and what happens at the edges."""

import math
import warnings

import pytest
import torch
from torch.nn import functional as F

from minift.core.heads import LanguageModel
from minift.core.train import train
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.methods import sft
from minift.text import batches, chat

# Five tokens over a vocabulary of 4; the prompt is the first two, token 1 ends the response. The weights of the next
# token, not normalised, after each position:
IDS = [0, 1, 2, 3, 1]
WEIGHTS = [[1, 3, 1, 1], [1, 1, 2, 1], [1, 1, 1, 5], [1, 2, 1, 1], [1, 1, 1, 1]]
LABELS = [-100, -100, 2, 3, 1]


def example(labels=LABELS, requires_grad=False):
    logits = torch.tensor(WEIGHTS, dtype=torch.float64).log()[None]
    return logits.requires_grad_(requires_grad), torch.tensor([labels])


def make_model(seed=0, **options):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 12, "context_length": 24, "n_layer": 2, "n_head": 2, "d_model": 32, "d_ff": 64} | options
    return LanguageModel(TransformerConfig(**sizes))


class Letters:
    """A tokenizer of one id a letter, enough for the chat template."""

    names = ("<pad>", "<eos>", "<system>", "<user>", "<assistant>")
    eos_id = 1

    def encode(self, text):
        return [5 + ord(letter) - ord("a") for letter in text]

    def special_id(self, name):
        return self.names.index(name)


# ---- the loss ----


def test_loss_of_the_worked_example(sft_loss=sft.sft_loss):
    """Probabilities 2/5, 5/8 and 2/5 of the two response tokens and the end: -(ln 2/5 + ln 5/8 + ln 2/5) / 3 =
    ln(10) / 3."""
    assert sft_loss(*example()).item() == pytest.approx(math.log(10) / 3, abs=1e-9)
    assert sft_loss(*example()).item() == pytest.approx(0.767528, abs=1e-6)


@pytest.mark.parametrize("mistake, labels, value", [("prompt included", [-100, 1, 2, 3, 1], 0.748933),
                                                    ("end not learned", [-100, -100, 2, 3, -100], 0.693147)])
def test_other_labels_have_another_loss(mistake, labels, value, sft_loss=sft.sft_loss):
    """The same logits with the prompt learned too give 0.748933; without the end of the response 0.693147."""
    assert sft_loss(*example(labels)).item() == pytest.approx(value, abs=1e-6)


def test_neither_unshifted_nor_divided_by_all(sft_loss=sft.sft_loss):
    """Without the shift the example would give 1.691725, divided by all four predictions 0.575646: both are
    mistakes."""
    logits, labels = example()
    unshifted = F.cross_entropy(logits[0], labels[0])
    by_all = F.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum") / 4
    assert unshifted.item() == pytest.approx(1.691725, abs=1e-6) and by_all.item() == pytest.approx(0.575646, abs=1e-6)
    assert min(abs(sft_loss(logits, labels) - wrong) for wrong in (unshifted, by_all)) > 0.1


def test_loss_equals_torchs_cross_entropy(sft_loss=sft.sft_loss):
    """On random logits and masks the loss is cross_entropy of logits[:, :-1] and labels[:, 1:], with
    ignore_index -100."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        B, T, V = (int(n) for n in torch.randint(2, 9, (3,), generator=generator))
        logits = torch.randn(B, T, V, generator=generator, dtype=torch.float64) * 3
        labels = torch.randint(V, (B, T), generator=generator)
        labels[torch.rand(B, T, generator=generator) < 0.4] = -100
        labels[0, 1] = 0
        expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        assert sft_loss(logits, labels).item() == pytest.approx(expected.item(), abs=1e-9)


def test_gradient_on_the_logits(sft_loss=sft.sft_loss):
    """(p - one-hot) / 3 where a response token is predicted, [1, 1, -3, 1] / 15 at position 1; exactly 0 elsewhere."""
    logits, labels = example(requires_grad=True)
    sft_loss(logits, labels).backward()
    expected = [[0.0] * 4, [1 / 15, 1 / 15, -3 / 15, 1 / 15],
                [1 / 24, 1 / 24, 1 / 24, -3 / 24], [1 / 15, -3 / 15, 1 / 15, 1 / 15]]
    torch.testing.assert_close(logits.grad[0, :4], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    assert (logits.grad[0, 0] == 0).all() and (logits.grad[0, 4] == 0).all()


def test_gradient_is_that_of_the_value(sft_loss=sft.sft_loss):
    """Autograd agrees with finite differences."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[-100, 1, -100, 3], [-100, -100, 2, 0]])
    assert torch.autograd.gradcheck(lambda x: sft_loss(x, labels), (logits,))


def test_logits_that_predict_no_response_do_not_matter(sft_loss=sft.sft_loss):
    """Changing the logits at prompt positions and at the last one, even to NaN, leaves the loss the same to the
    last bit."""
    logits, labels = example()
    loss = sft_loss(logits, labels)
    logits[0, 0], logits[0, 4] = float("nan"), 1e30
    assert torch.equal(sft_loss(logits, labels), loss)


def test_every_token_counts_the_same(sft_loss=sft.sft_loss):
    """Losses [2] of a short and [1, 1, 1] of a long response: the mean is 5/4 over tokens, not 3/2 over responses."""
    def logits_with_loss(nll):                  # two ids: p(id 0) = exp(-nll)
        return [math.log(math.exp(-nll)), math.log(1 - math.exp(-nll))]
    logits = torch.tensor([[logits_with_loss(2.0)] * 4, [logits_with_loss(1.0)] * 4], dtype=torch.float64)
    labels = torch.tensor([[-100, 0, -100, -100], [-100, 0, 0, 0]])
    assert sft_loss(logits, labels).item() == pytest.approx(1.25, abs=1e-9)


def test_nothing_to_learn_is_zero(sft_loss=sft.sft_loss):
    """All labels -100, or only the first token labelled, which nothing predicts: 0 with a gradient of 0, never NaN."""
    for labels in ([-100] * 5, [0, -100, -100, -100, -100]):
        logits, labels = example(labels, requires_grad=True)
        loss = sft_loss(logits, labels)
        loss.backward()
        assert loss.item() == 0 and (logits.grad == 0).all()


def test_labels_that_are_no_ids_are_refused(sft_loss=sft.sft_loss):
    """A label of -1, or one beyond the vocabulary, is named with its place."""
    for bad in (-1, 4):
        with pytest.raises(MiniftError, match=f"label {bad} at row 0, column 3"):
            sft_loss(*example([-100, -100, 2, bad, 1]))


def test_worked_example_with_a_pad_that_is_also_the_end(sft_loss=sft.sft_loss):
    """Labels, not ids, say what is padding: a real end-of-text label counts, a third row of -100 changes nothing."""
    logits = torch.tensor([[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5], [0.0, 0.0]], dtype=torch.float64)[None]
    assert sft_loss(logits[:, :3], torch.tensor([[-100, 0, 1]])).item() == pytest.approx(1.126928, abs=1e-6)
    assert sft_loss(logits, torch.tensor([[-100, 0, 1, 1]])).item() == pytest.approx(0.793595, abs=1e-6)
    assert sft_loss(logits, torch.tensor([[-100, 0, 1, -100]])).item() == pytest.approx(1.126928, abs=1e-6)


# ---- the loss for train() ----


def random_batch(seed, B=3, T=9, V=12):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (B, T), generator=generator)
    lengths = torch.randint(3, T + 1, (B, 1), generator=generator)
    real = torch.arange(T) < lengths
    labels = ids.masked_fill((torch.rand(B, T, generator=generator) < 0.5) | ~real, -100)
    return {"input_ids": ids, "attention_mask": real, "labels": labels}


def test_make_sft_loss_is_sft_loss_on_the_logits(make_sft_loss=sft.make_sft_loss, sft_loss=sft.sft_loss):
    """Without computing all logits: the same value, the same gradients, and n_tokens counts the labels behind
    the first."""
    model = make_model().double()
    for seed in range(3):
        batch = random_batch(seed)
        loss, metrics = make_sft_loss(model)(batch)
        expected = sft_loss(model(batch["input_ids"], batch["attention_mask"]), batch["labels"])
        assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
        assert metrics["n_tokens"] == int((batch["labels"][:, 1:] != -100).sum())
        parameters = list(model.parameters())
        for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sides", [(0, 4), (4, 0)])
def test_padding_does_not_matter(sides, make_sft_loss=sft.make_sft_loss):
    """What ids the padding has, how much there is of it, and on which side, changes nothing."""
    model, batch = make_model(), random_batch(1)
    batch["labels"][:, 0] = -100                # with padding before it, the first token would have a prediction
    other = {name: F.pad(x, sides, value={"labels": -100}.get(name, 0)) for name, x in batch.items()}
    other["input_ids"] = torch.where(other["attention_mask"], other["input_ids"], 7)
    loss_fn = make_sft_loss(model)
    assert loss_fn(batch)[0].item() == pytest.approx(loss_fn(other)[0].item(), abs=1e-5)


def test_batch_with_nothing_to_learn_is_zero(make_sft_loss=sft.make_sft_loss):
    """A batch whose labels are all -100 has loss 0 and 0 tokens, so that train() lets it count nothing."""
    batch = random_batch(0)
    loss, metrics = make_sft_loss(make_model())(batch | {"labels": torch.full_like(batch["labels"], -100)})
    assert loss.item() == 0 and metrics["n_tokens"] == 0


def test_packed_examples_lose_what_they_lose_alone(make_sft_loss=sft.make_sft_loss):
    """The summed loss of a packed batch is that of its examples one by one, and an example does not see its
    neighbour."""
    model = make_model().double()
    loss_fn = make_sft_loss(model)
    examples = [{"input_ids": ids, "labels": [-100, *ids[1:]]} for ids in ([1, 2, 3], [4, 5, 6, 7, 8], [9, 10])]
    packed = batches.pack(examples, 8, pad_id=0)
    loss, metrics = loss_fn(packed)
    alone = [loss_fn({name: torch.tensor([value]) for name, value in e.items()}) for e in examples]
    assert metrics["n_tokens"] == 2 + 4 + 1
    assert (loss * 7).item() == pytest.approx(sum((value * m["n_tokens"]).item() for value, m in alone), abs=1e-9)


def test_fifty_samples_are_learned_with_their_ends(make_sft_loss=sft.make_sft_loss):
    """After training on 50 question-answer pairs the greedy answer to each is the learned one, and stops with
    the end token."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randperm(8 * 8 * 8, generator=generator)[:50].tolist()
    chats = []
    for code in codes:                          # <user> three letters <assistant> some letters <eos>
        question = [code % 8, code // 8 % 8, code // 64]
        answer = [4 + (sum(question) + i) % 8 for i in range(1 + code % 3)] + [1]
        ids = [2, *[4 + q for q in question], 3, *answer]
        chats.append((ids, [False] * 5 + [True] * len(answer)))
    examples = sft.encode_examples(chats, 24)
    model = make_model(d_model=48, d_ff=96)
    data = batches.Batches(examples, 25, lambda rows: batches.collate(rows, 0), seed=0)
    train(model, data, make_sft_loss(model), steps=150, lr=1e-2, weight_decay=0.0, progress=False)
    model.eval()
    for ids, _ in chats:
        written = list(ids[:5])
        for _ in range(5):
            written.append(int(model(torch.tensor([written]))[0, -1].argmax()))
            if written[-1] == 1:
                break
        assert written == ids


# ---- labels ----


def test_labels_are_the_ids_that_the_model_wrote(make_labels=sft.make_labels):
    """Where response_mask is True the label is the id itself, at its own place; elsewhere -100."""
    assert make_labels(IDS, [False, False, True, True, True]) == LABELS
    with pytest.raises(MiniftError, match="response_mask"):
        make_labels([1, 2], [True])


def test_every_assistant_turn_is_learned(encode_example=sft.encode_example):
    """Of a conversation of several turns each answer with its end is learned; no system text, question or role
    marker is."""
    turns = [("system", "s"), ("user", "ab"), ("assistant", "cd"), ("user", "e"), ("assistant", "f")]
    messages = [{"role": role, "content": content} for role, content in turns]
    got = encode_example(*chat.encode_chat(Letters(), messages), 50)
    a = 5
    assert got["input_ids"] == [2, a + 18, 3, a, a + 1, 4, a + 2, a + 3, 1, 3, a + 4, 4, a + 5, 1]
    assert got["labels"] == [-100] * 6 + [a + 2, a + 3, 1] + [-100] * 3 + [a + 5, 1]


def test_a_long_conversation_loses_its_end(encode_example=sft.encode_example):
    """Cut to the context: the response that is cut has no end to learn; a prompt that fills the context leaves
    nothing."""
    ids, mask = [3, 7, 8, 4, 9, 10, 1], [False] * 4 + [True] * 3
    assert encode_example(ids, mask, 7) == {"input_ids": ids, "labels": [-100] * 4 + [9, 10, 1]}
    assert encode_example(ids, mask, 6) == {"input_ids": ids[:6], "labels": [-100] * 4 + [9, 10]}
    assert encode_example(ids, mask, 4) is None
    assert encode_example([1, 2], [True, False], 9) is None          # nothing predicts the first token


def test_examples_with_nothing_to_learn_are_dropped_and_counted(encode_examples=sft.encode_examples):
    """The warning counts what was dropped and what was cut; when nothing is left it is an error; when all fit,
    silence."""
    good, long = ([3, 4, 5, 1], [0, 0, 1, 1]), ([3, 4, 5, 6, 1], [0, 0, 1, 1, 1])
    hopeless = ([3] * 9 + [1], [0] * 9 + [1])
    with pytest.warns(UserWarning, match="of 3 examples, 1 were dropped.*2 are longer"):
        examples = encode_examples([good, long, hopeless], 4)
    assert [e["input_ids"] for e in examples] == [[3, 4, 5, 1], [3, 4, 5, 6]]
    with pytest.raises(MiniftError, match="nothing to learn: of 2 examples, 2 were dropped"):
        encode_examples([hopeless] * 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(encode_examples(iter([good, long]), 5)) == 2
