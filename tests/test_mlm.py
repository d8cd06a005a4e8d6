"""Masked language modelling: which tokens are hidden, how, what is learned from them, and again and again the same."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from minift.core.heads import MaskedLanguageModel
from minift.core.train import train
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.methods import mlm
from minift.text.batches import Batches
from minift.text.segments import collate_ids
from minift.text.tokenizer import Tokenizer
from minift.world import recipes

PAD, CLS, SEP, MASK = range(4)
TEXTS = ["The kittens played, and the kitten's friend was playing.", "One day 12 kites flew; café, naïve, Żółw!"]


def make_ids(n_rows, n_tokens, vocab_size, seed=0, n_pad=0):
    """[CLS] ordinary tokens [SEP] padding, and the special mask of it; ordinary ids begin at 4."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, vocab_size, (n_rows, n_tokens), generator=generator)
    ids = F.pad(F.pad(F.pad(ids, (1, 0), value=CLS), (0, 1), value=SEP), (0, n_pad), value=PAD)
    return ids, ids < 4


def make_model(dtype=torch.float64, vocab_size=20, **options):
    torch.manual_seed(0)
    config = TransformerConfig(vocab_size, 24, n_layer=2, n_head=2, d_model=16, d_ff=32, causal=False, norm_first=False,
                               norm="layernorm", norm_eps=1e-12, positions="learned", mlp="gelu", bias=True, **options)
    model = MaskedLanguageModel(config).to(dtype)
    with torch.no_grad():
        for p in model.parameters():            # predictions that differ from token to token
            p.mul_(8 if p.ndim == 2 else 1)
    return model


def make_batch(seed=0, n_rows=4, vocab_size=20):
    """Masked ids, labels and attention_mask of rows of unequal length, padded on the right."""
    ids, special = make_ids(n_rows, 9, vocab_size, seed)
    real = torch.arange(ids.shape[1]) < torch.tensor([11, 7, 4, 9])[:n_rows, None]
    generator = torch.Generator().manual_seed(seed)
    ids, labels = mlm.mask_tokens(ids, special | ~real, mask_id=MASK, vocab_size=vocab_size, generator=generator,
                                  probability=0.4)
    return {"input_ids": ids, "attention_mask": real, "labels": labels}


def make_masked(n=12, seed=0, Masked=mlm.Masked, **options):
    examples = [{"input_ids": row[:row.numel() - i % 4].tolist()} for i, row in enumerate(make_ids(n, 10, 20)[0])]
    batches = Batches(examples, 4, lambda rows: collate_ids([row["input_ids"] for row in rows], PAD), seed)
    return Masked(batches, **{"mask_id": MASK, "special_ids": range(4), "vocab_size": 20, "seed": seed,
                              "probability": 0.4} | options)


def contents(batches):
    return [{name: x.tolist() for name, x in batch.items()} for batch in batches]


def assert_near(count, n, p):
    """The count is within 5 sigma of n draws of probability p."""
    difference, sigma = abs(count - n * p), math.sqrt(n * p * (1 - p))
    assert difference < 5 * sigma, f"{count} of {n} are {count / n:.2%}, where {p:.2%} are expected"


# ---- which tokens are hidden, and how ----


def test_counts_on_a_hundred_thousand_tokens(mask_tokens=mlm.mask_tokens):
    """15 % are selected; of these 80 % become the mask, 10 % a random token, 10 % stay: each count within 5 sigma."""
    ids, special = make_ids(100, 1000, 5000, n_pad=30)
    out, labels = mask_tokens(ids, special, mask_id=MASK, vocab_size=5000,
                              generator=torch.Generator().manual_seed(1))
    selected = labels != -100
    n = int(selected.sum())
    assert abs(n - 15_000) < 565
    assert_near(int((out == MASK)[selected].sum()), n, 0.8)
    assert_near(int((out == ids)[selected].sum()), n, 0.1)
    assert_near(int(((out != ids) & (out != MASK)).sum()), n, 0.1)


@pytest.mark.parametrize("probability", [0.01, 0.4, 0.99])
def test_the_share_can_be_chosen(probability, mask_tokens=mlm.mask_tokens):
    """`probability` is the share of ordinary tokens that are selected, each on its own, the same at every place."""
    ids, special = make_ids(1000, 20, 50)
    _, labels = mask_tokens(ids, special, mask_id=MASK, vocab_size=50, probability=probability,
                            generator=torch.Generator().manual_seed(1))
    selected = labels != -100
    assert_near(int(selected.sum()), 20_000, probability)
    for column in selected[:, 1:-1].T:
        assert_near(int(column.sum()), 1000, probability)
    if probability == 0.4:                      # neighbours do not know of each other
        assert_near(int((selected[:, 1:-2:2] & selected[:, 2:-1:2]).sum()), 10_000, 0.16)


def test_special_tokens_are_never_touched(mask_tokens=mlm.mask_tokens):
    """Where special_mask is True the id stays and the label is -100, whatever the id is; all else can be selected."""
    ids, special = make_ids(8, 12, 30, n_pad=4)
    special[:, 3] = True                                                     # an ordinary id that is protected
    selected = torch.zeros_like(special)
    for seed in range(50):
        out, labels = mask_tokens(ids, special, mask_id=MASK, vocab_size=30, probability=0.9,
                                  generator=torch.Generator().manual_seed(seed))
        assert torch.equal(out[special], ids[special]) and (labels[special] == -100).all()
        selected |= labels != -100
    assert torch.equal(selected, ~special)


def test_labels_are_the_original_ids(mask_tokens=mlm.mask_tokens):
    """A label is the id that stood there where selected, else -100; every changed token has a label; no input moves."""
    ids, special = make_ids(30, 20, 50, n_pad=3)
    before = ids.clone(), special.clone()
    out, labels = mask_tokens(ids, special, mask_id=MASK, vocab_size=50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ids, before[0]) and torch.equal(special, before[1])
    assert out.dtype == labels.dtype == torch.long and out is not ids
    selected = labels != -100
    assert 0 < selected.sum() < selected.numel() and torch.equal(labels[selected], ids[selected])
    assert torch.equal(out[~selected], ids[~selected]) and (out != ids).any()


def test_random_ids_are_ordinary_ones(mask_tokens=mlm.mask_tokens):
    """A random token is never the mask nor a special id of the batch, and is each of the others equally often.

    With 8 others, it is the old id in 1 of 8 cases: 80 % masked, 10 % 7/8 changed, 10 % 9/8 unchanged.
    """
    ids, special = make_ids(500, 400, 12, n_pad=1)
    out, labels = mask_tokens(ids, special, mask_id=MASK, vocab_size=12, probability=0.5,
                              generator=torch.Generator().manual_seed(1))
    selected = labels != -100
    n = int(selected.sum())
    assert_near(int((out == MASK).sum()), n, 0.8)                            # a drawn mask would make it 0.8125
    assert_near(int((out == ids)[selected].sum()), n, 0.1 * 9 / 8)
    changed = out[selected & (out != ids) & (out != MASK)]
    assert not set(changed.tolist()) & {PAD, CLS, SEP, MASK}
    for i in range(4, 12):
        assert_near(int((changed == i).sum()), len(changed), 1 / 8)


def test_the_generator_decides(mask_tokens=mlm.mask_tokens):
    """The same seed gives the same mask, another seed another one; the global random numbers are left alone."""
    ids, special = make_ids(10, 20, 50)
    def draw(seed):
        return mask_tokens(ids, special, mask_id=MASK, vocab_size=50, generator=torch.Generator().manual_seed(seed))
    state = torch.get_rng_state()
    first, again, other = draw(1), draw(1), draw(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first, again)) and not torch.equal(first[1], other[1])


def test_what_cannot_be_masked(mask_tokens=mlm.mask_tokens):
    """A share that is not above 0 and below 1, or a vocabulary of special ids alone: MiniftError."""
    ids, special = make_ids(2, 5, 9)
    for probability in (0, 1, -0.1, 15, math.nan):
        with pytest.raises(MiniftError, match=f"probability is {probability}"):
            mask_tokens(ids, special, mask_id=MASK, vocab_size=9, probability=probability)
    with pytest.raises(MiniftError, match="every id of the vocabulary is special"):
        mask_tokens(torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, True]]), mask_id=3, vocab_size=4)


# ---- whole words ----


def seams_inside_words(tokenizer, ids):
    """Read from the text: for each seam between tokens, whether a word goes on across it."""
    text, seams = tokenizer.decode(ids), []
    inside = [False]
    for match in re.finditer(r"[^\W\d_]+|[\W\d_]", text):
        inside += [True] * (len(match.group().encode()) - 1) + [False]       # by bytes; False where a match ends
    offset = 0
    for i in ids[:-1]:
        offset += len(tokenizer.token_bytes(i))
        seams.append(inside[offset])
    return seams


def test_words_are_those_of_the_text(word_ids=mlm.word_ids, letters_of=mlm.letters_of):
    """Tokens between which the text has letters on both sides are one word; spaces, signs and digits begin anew."""
    tokenizer = Tokenizer.train(TEXTS, 256 + 12 + 8)
    for text in TEXTS:
        ids = [tokenizer.special_id("<cls>"), *tokenizer.encode(text), tokenizer.special_id("<sep>")]
        numbers = word_ids(torch.tensor([ids, ids]), letters_of(tokenizer))
        expected = [False, *seams_inside_words(tokenizer, ids[1:-1]), False]
        assert numbers[0, 0] == 0 and torch.equal(numbers[0], numbers[1])
        assert [a == b for a, b in zip(numbers[0].tolist(), numbers[0, 1:].tolist())] == expected
        assert numbers[0].diff().max() == 1 and sum(expected) > 10


def test_whole_words_are_hidden_together(mask_tokens=mlm.mask_tokens):
    """With word_ids every word is selected with all its tokens or not at all, 15 % of the words, row by row anew."""
    lengths = [1, 3, 2, 1, 4, 1]
    words = torch.tensor([sum(([i] * n for i, n in enumerate(lengths)), [])]).expand(4000, -1)      # (B, 12)
    ids = torch.randint(4, 50, words.shape, generator=torch.Generator().manual_seed(0))
    out, labels = mask_tokens(ids, torch.zeros_like(ids), mask_id=MASK, vocab_size=50, word_ids=words,
                              generator=torch.Generator().manual_seed(1))
    selected = labels != -100
    for i in range(len(lengths)):
        word = selected[:, words[0] == i]
        assert torch.equal(word.all(1), word.any(1))
        assert_near(int(word.any(1).sum()), 4000, 0.15)
    assert_near(int((selected[:, 0] & selected[:, 1]).sum()), 4000, 0.0225)
    assert_near(int((out == MASK).sum()), int(selected.sum()), 0.8)


# ---- the loss ----


def test_loss_of_a_worked_example(mlm_loss=mlm.mlm_loss):
    """Of four places two are selected, with probabilities 1/2 and 1/8 of the original token: (ln 2 + ln 8) / 2."""
    weights = torch.tensor([[9, 1, 1], [1, 1, 2], [7, 7, 7], [1, 2, 13]], dtype=torch.float64)
    labels = torch.tensor([[-100, 2, -100, 1]])
    assert mlm_loss(weights.log()[None], labels).item() == pytest.approx(2 * math.log(2), abs=1e-9)


def test_loss_equals_torchs_cross_entropy(mlm_loss=mlm.mlm_loss):
    """On random logits: cross_entropy with ignore_index -100 of each place with its own label, nothing shifted."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        logits = torch.randn(3, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
        labels = torch.randint(7, (3, 5), generator=generator)
        labels[torch.rand(3, 5, generator=generator) < 0.6] = -100
        labels[0, 0] = 1
        expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        loss = mlm_loss(logits, labels)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
        mine, theirs = (torch.autograd.grad(x, logits)[0] for x in (loss, expected))
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


def test_other_logits_do_not_matter(mlm_loss=mlm.mlm_loss):
    """Logits where nothing is selected, even NaN, leave the loss the same to the last bit, and have gradient 0."""
    logits = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.full((2, 6), -100)
    labels[0, 2], labels[1, 5] = 3, 8
    changed = torch.where(labels[..., None] == -100, math.nan, logits).requires_grad_(True)
    loss = mlm_loss(changed, labels)
    assert torch.equal(loss, mlm_loss(logits, labels))
    loss.backward()
    assert (changed.grad[labels == -100] == 0).all() and (changed.grad[labels != -100] != 0).all()


def test_nothing_selected_is_zero(mlm_loss=mlm.mlm_loss, make_mlm_loss=mlm.make_mlm_loss):
    """All labels -100: loss 0 with a gradient of 0 at every parameter, 0 tokens, never NaN."""
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = mlm_loss(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()
    model, batch = make_model(), make_batch()
    loss, metrics = make_mlm_loss(model)(batch | {"labels": torch.full_like(batch["labels"], -100)})
    loss.backward()
    assert loss.item() == 0 and metrics["n_tokens"] == 0 and metrics["accuracy"] == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


# ---- the loss for train() ----


def test_make_mlm_loss_is_mlm_loss_on_the_logits(make_mlm_loss=mlm.make_mlm_loss, mlm_loss=mlm.mlm_loss):
    """Without computing all logits: the same value, the same gradients; n_tokens and accuracy count selected tokens."""
    model = make_model()
    for seed in range(3):
        batch = make_batch(seed)
        loss, metrics = make_mlm_loss(model)(batch)
        logits, selected = model(batch["input_ids"], batch["attention_mask"]), batch["labels"] != -100
        expected = mlm_loss(logits, batch["labels"])
        assert loss.item() == pytest.approx(expected.item(), abs=1e-9) and expected > 1
        assert metrics["n_tokens"] == int(selected.sum())
        hits = [int(logits[b, t].argmax()) == int(batch["labels"][b, t]) for b, t in selected.nonzero().tolist()]
        assert float(metrics["accuracy"]) == pytest.approx(sum(hits) / len(hits), abs=1e-6)
        parameters = list(model.parameters())
        for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sides", [(0, 5), (5, 0)])
def test_padding_changes_nothing(sides, make_mlm_loss=mlm.make_mlm_loss):
    """More padding, on either side, with any ids, leaves the loss the same."""
    model, batch = make_model(), make_batch()
    other = {name: F.pad(x, sides, value={"labels": -100}.get(name, 0)) for name, x in batch.items()}
    other["input_ids"] = torch.where(other["attention_mask"], other["input_ids"], 7)
    loss_fn = make_mlm_loss(model)
    assert loss_fn(other)[0].item() == pytest.approx(loss_fn(batch)[0].item(), abs=1e-9)


def test_blanks_are_filled_from_the_right(make_mlm_loss=mlm.make_mlm_loss):
    """Rows of one token, said six times: after some training the first, hidden, is read off the others."""
    model = make_model(torch.float32, vocab_size=14)
    ids = torch.arange(4, 14)[:, None].repeat(1, 6)
    batches = mlm.Masked([{"input_ids": ids}], mask_id=MASK, special_ids=range(4), vocab_size=14, probability=0.3)
    history = train(model, batches, make_mlm_loss(model), steps=60, lr=1e-2, progress=False)
    hidden = ids.clone()
    hidden[:, 0] = MASK
    assert torch.equal(model(hidden)[:, 0].argmax(-1), ids[:, 0])
    assert history[-1]["loss"] < 1 < math.log(10) < history[0]["loss"]


# ---- batches with a fresh mask every epoch ----


def test_a_masked_batch_is_its_batch_with_tokens_hidden(Masked=mlm.Masked):
    """Putting the labels back gives the batch; [CLS], [SEP] and padding are never hidden; nothing else changes."""
    masked = make_masked(Masked=Masked)
    assert len(masked) == 3
    originals = Batches(masked.batches.examples, 4, masked.batches.collate, masked.batches.seed)
    for hidden, batch in zip(masked, originals, strict=True):
        selected = hidden["labels"] != -100
        assert torch.equal(torch.where(selected, hidden["labels"], hidden["input_ids"]), batch["input_ids"])
        assert torch.equal(hidden["attention_mask"], batch["attention_mask"]) and selected.any()
        assert not (selected & (~batch["attention_mask"] | (batch["input_ids"] < 4))).any()
        assert hidden.keys() == {"input_ids", "attention_mask", "labels"}
        assert (hidden["input_ids"][selected] == MASK).any() and not (batch["input_ids"] == MASK).any()


def test_padding_with_an_ordinary_id_is_not_hidden(Masked=mlm.Masked):
    """attention_mask, not the id, says what is padding; the batch itself is left as it was."""
    batch = {"input_ids": torch.full((4, 30), 9), "attention_mask": torch.arange(30).expand(4, 30) < 20, "label": 7}
    before = batch["input_ids"].clone()
    hidden, = Masked([batch], mask_id=MASK, special_ids=[0], vocab_size=20, probability=0.9)
    assert (hidden["labels"][:, 20:] == -100).all() and (hidden["labels"][:, :20] == 9).sum() > 50
    assert hidden["label"] == 7 and torch.equal(batch["input_ids"], before) and "labels" not in batch


def test_a_fresh_mask_every_epoch(Masked=mlm.Masked):
    """Each pass hides other tokens of the same rows; the same seed hides the same, another seed others."""
    rows = [{"input_ids": make_ids(6, 20, 20)[0]}]
    def make(seed=1):
        return Masked(rows, mask_id=MASK, special_ids=range(4), vocab_size=20, seed=seed)
    masked, again = make(), make()
    first, second = contents(masked), contents(masked)
    assert first != second
    assert [contents(again), contents(again)] == [first, second]
    assert first != contents(make(seed=2))


def test_a_mask_that_stays(Masked=mlm.Masked):
    """fresh=False hides the same tokens in every epoch: those of the first."""
    rows = [{"input_ids": make_ids(6, 20, 20)[0]}] * 2
    options = {"mask_id": MASK, "special_ids": range(4), "vocab_size": 20}
    masked = Masked(rows, fresh=False, **options)
    first = contents(masked)
    assert contents(masked) == contents(masked) == first == contents(Masked(rows, **options))
    assert first[0] != first[1]                                              # but each batch has a mask of its own


def test_the_epoch_can_be_set(Masked=mlm.Masked):
    """Setting `epoch` goes back to that epoch's order and mask; the batches inside go along."""
    masked = make_masked(Masked=Masked)
    epochs = [contents(masked) for _ in range(3)]
    assert masked.epoch == masked.batches.epoch == 3
    for epoch in (1, 0, 2):
        masked.epoch = epoch
        assert contents(masked) == epochs[epoch]
    fresh = make_masked(Masked=Masked)
    list(fresh.batches)                                                      # somebody else has read them before
    assert [contents(fresh) for _ in range(3)] == epochs


def test_whole_words_in_batches(Masked=mlm.Masked, letters_of=mlm.letters_of):
    """With letters, the words of a text are hidden as wholes, other tokens on their own."""
    tokenizer = Tokenizer.train(TEXTS, 256 + 12 + 8)
    ids = tokenizer.encode(TEXTS[0])
    options = {"mask_id": tokenizer.special_id("<mask>"), "special_ids": tokenizer.special.values(),
               "vocab_size": tokenizer.vocab_size}
    seams = seams_inside_words(tokenizer, ids)
    parted = {}
    for letters in (letters_of(tokenizer), None):
        batch, = Masked([{"input_ids": torch.tensor([ids] * 200)}], letters=letters, **options)
        selected = (batch["labels"] != -100).tolist()
        parted[letters is None] = sum(row[i] != row[i + 1] for row in selected for i, inside in enumerate(seams)
                                      if inside)
        assert any(row[i] != row[i + 1] for row in selected for i, inside in enumerate(seams) if not inside)
    assert parted[False] == 0 < parted[True]


def test_resuming_is_bit_equal(tmp_path, Masked=mlm.Masked):
    """A run stopped in its second epoch and resumed by new objects ends as if never stopped, dropout included."""
    def run(stop=None, **options):
        model = make_model(torch.float32, dropout=0.1)
        torch.manual_seed(1)
        loss_fn, steps = mlm.make_mlm_loss(model), []
        def stopping(batch):
            steps.append(batch)
            if len(steps) == stop:
                raise OSError("the power went out")
            return loss_fn(batch)
        history = train(model, make_masked(Masked=Masked), stopping, steps=8, lr=1e-2, progress=False,
                        state_path=tmp_path / "state", save_every=5, **options)
        return model, history
    whole, history = run()
    (tmp_path / "state").unlink()
    with pytest.raises(OSError, match="power"):
        run(stop=7)
    rest, resumed = run(resume=True)
    assert resumed == history
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), rest.parameters()))


# ---- the start of the encoder that comes with the repository ----


def test_the_encoders_start(init_encoder=recipes.init_encoder):
    """Matrices have the given std, norms and biases stay; positions are waves, alike as they are near."""
    torch.manual_seed(0)
    model = MaskedLanguageModel(TransformerConfig(300, 64, 2, 2, 32, 64, **{
        key: recipes.ENCODER["config"][key] for key in ("causal", "norm_first", "norm", "positions", "mlp", "bias")}))
    before = {name: p.clone() for name, p in model.named_parameters()}
    init_encoder(model, 0.06)
    for name, p in model.named_parameters():
        if p.ndim == 2:
            assert p.square().mean().sqrt().item() == pytest.approx(0.06, rel=0.1, abs=0), name
        else:
            assert torch.equal(p, before[name]), name
    assert model.head.decoder.weight is model.body.embed.weight
    positions = F.normalize(model.body.positions.weight, dim=-1)
    alike = positions @ positions.T
    expected = torch.tensor([[sum(math.cos((a - b) / 10_000 ** (i / 16)) for i in range(16)) / 16 for b in range(64)]
                             for a in range(64)])
    torch.testing.assert_close(alike, expected, rtol=0, atol=1e-5)           # sin a sin b + cos a cos b = cos(a - b)


def test_masked_batches_of_the_recipe(masked_batches=recipes.masked_batches):
    """[MASK] hides about the given share; no special token is hidden; fresh=False, shuffle=False repeats itself."""
    tokenizer = Tokenizer.train(TEXTS, 256 + 12 + 8)
    rows = [[tokenizer.special_id("<cls>"), *tokenizer.encode(TEXTS[i % 2] * 3), tokenizer.special_id("<sep>")]
            for i in range(60)]
    batches = masked_batches(tokenizer, rows, 16, hidden=0.3, fresh=False, shuffle=False)
    seen = list(batches)
    n = sum(len(row) - 2 for row in rows)
    hidden = sum(int((batch["labels"] != -100).sum()) for batch in seen)
    assert contents(batches) == contents(seen)
    assert_near(hidden, n, 0.3)
    assert_near(sum(int((batch["input_ids"] == tokenizer.special_id("<mask>")).sum()) for batch in seen), hidden, 0.8)
    assert not any(torch.isin(batch["labels"], torch.tensor(list(tokenizer.special.values()))).any() for batch in seen)
