"""Stage 10: the encoder. It fills blanks from both sides, and a classification head learns on its frozen features."""

import torch

from minift.evaluation.baselines import majority
from minift.evaluation.masked import Bigrams, masked_accuracy
from minift.evaluation.metrics import confusion_matrix, expected_calibration_error, macro_f1
from minift.formats.checkpoint import save_model
from minift.methods.mlm import letters_of, mask_tokens, word_ids
from minift.studies.label_curve import Task, labels_of
from minift.text.segments import collate_ids, encode_segments
from minift.tour import draw
from minift.tour.common import Result, change
from minift.world.corpus import stories
from minift.world.recipes import encoder_rows, masked_batches

TASK = "topic"


def encoder(tour):
    """10. The pretrained encoder fills blanks; then a linear head on the frozen encoder is compared with other ways."""
    # Fill blanks.
    s = tour.settings
    torch.manual_seed(tour.seed)
    model, tokenizer = tour.load("pretrained encoder")
    filled = blank_measures(model, tokenizer, tour.seed, s.n_valid)
    texts, *tokens = fill_blanks(model, tokenizer, stories(3, tour.seed, "blanks"), tour.seed)
    draw.draw_blanks(tour, tokenizer, *tokens)
    # Classify in several ways, with several numbers of labels.
    task = Task(TASK, tour.seed, model.body, tokenizer, s.label_sizes[-1], s.n_labelled_test, ("stories",))
    curve, few = learning_curve(task, s), s.label_sizes[0]
    # Look at the errors of one probe. With more labels it would make few.
    probe = task.fit("probe", s.label_sizes[1])
    save_model(probe, tokenizer, tour.out / "encoder")
    right, (confidence, guesses) = labels_of(task.test["stories"]), task.probabilities(probe, "stories").max(-1)
    names = [[task.labels[int(i)] for i in part] for part in (guesses, right)]
    draw.draw_encoder(tour, curve, confusion_matrix(*names, task.labels), task.labels)
    # Report all measures.
    measures = {
        **filled, "probe_macro_f1": macro_f1(guesses, right),
        "probe_calibration_error": expected_calibration_error(confidence, guesses == torch.tensor(right)),
        "majority_accuracy": majority(labels_of(task.train), right)}
    for way, points in curve.items():
        measures |= {f"{way.replace(' ', '_')}_accuracy_{n}": value for n, value in points.items()}
    return Result(
        f"The encoder fills {filled['masked_accuracy']:.0%} of the blanks (a bigram guess: "
        f"{filled['bigram_accuracy']:.0%}). Frozen, with {few} labels, it gets {curve['probe'][few]:.0%} of the topics "
        f"right; from scratch {curve['scratch'][few]:.0%}.",
        measures,
        change(f"topics, {few} labels: scratch, probe", curve["scratch"][few], curve["probe"][few]),
        texts=texts,
        rows=[{"labels": n, **{way: points.get(n) for way, points in curve.items()}} for n in s.label_sizes],
        pictures=[tour.picture("encoder-blanks"), tour.picture("encoder")])


def learning_curve(task, s):
    """way -> {number of labels: accuracy on held-out stories}; training all parameters is for the smaller sizes."""
    sizes = {"probe": s.label_sizes, "bag of words": s.label_sizes}
    sizes |= {way: s.label_sizes[:s.n_full_sizes] for way in ("full", "scratch")}
    return {way: {n: task.measure(way, n, s.label_steps)["stories"] for n in some} for way, some in sizes.items()}


def blank_measures(model, tokenizer, seed, n):
    """Accuracy on the hidden tokens of n held-out documents, for the model and for two simple guesses."""
    length = model.config.context_length
    valid = masked_batches(tokenizer, encoder_rows(tokenizer, n, seed, "test", length), 32, fresh=False, shuffle=False)
    known = encoder_rows(tokenizer, 2000, seed, "train", length)
    bigrams = Bigrams(known, tokenizer.vocab_size, tokenizer.special.values())
    frequent, bigram = bigrams.accuracies(valid)
    return {
        "masked_accuracy": masked_accuracy(model, valid), "bigram_accuracy": bigram,
        "most_frequent_accuracy": frequent}


@torch.no_grad()
def fill_blanks(model, tokenizer, texts, seed):
    """Hide whole words of some texts and let the model fill them in: (samples, rows of ids, masks of hidden tokens).

    samples: (label, text), where a filled blank is written as [the guess], or [the guess, not the word]. Rows and
    masks: a tensor (T,) for each text.
    """
    batch = collate_ids([encode_segments(tokenizer, text)[0] for text in texts], tokenizer.pad_id)
    ids = batch["input_ids"]  # (B, T)
    special = torch.isin(ids, torch.tensor(list(tokenizer.special.values())))
    words = word_ids(ids, letters_of(tokenizer))  # (B, T)
    hidden, _ = mask_tokens(
        ids, special, mask_id=tokenizer.special_id("<mask>"), vocab_size=tokenizer.vocab_size,
        generator=torch.Generator().manual_seed(seed), word_ids=words)
    blanks = hidden == tokenizer.special_id("<mask>")
    guesses = torch.where(blanks, model(hidden, batch["attention_mask"]).argmax(-1), ids)
    found = []
    for row in range(len(texts)):
        parts = []
        for word in words[row].unique().tolist():
            here = (words[row] == word) & ~special[row]
            right, guess = (tokenizer.decode(x[row][here].tolist()) for x in (ids, guesses))
            filled = blanks[row][here].any()
            parts.append(marked(guess, right) if filled else right)
        found.append((f"filled blanks {row + 1}", "".join(parts)))
    real = batch["attention_mask"]
    return found, [row[m] for row, m in zip(guesses, real)], [row[m] for row, m in zip(blanks, real)]


def marked(guess, right):
    """A filled blank as text: " [kite]" if the guess is the hidden word, else " [kite, not ball]"."""
    space = " " if right.startswith(" ") else ""
    return f"{space}[{guess.strip()}]" if guess == right else f"{space}[{guess.strip()}, not {right.strip()}]"
