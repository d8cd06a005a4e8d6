"""The verbs that train an encoder: mlm goes on with its masked training, classify puts a head on it."""

from functools import partial

from minift.cli.classes import class_names, confusion_table
from minift.cli.encoders import encode_labelled_row, encode_pieces
from minift.cli.evaluate import judge
from minift.cli.examples import load
from minift.cli.folders import check_out
from minift.cli.predict import label_rows
from minift.cli.run import Run
from minift.core.heads import Encoder, MaskedLanguageModel, SequenceClassifier
from minift.core.logprobs import IGNORE_INDEX
from minift.errors import MiniftError
from minift.evaluation.baselines import (
    bag_of_words,
    labelled_batches,
    majority,
    predict,
    random_encoder,
    shuffled_labels,
)
from minift.evaluation.metrics import confusion_matrix
from minift.methods.classify import PROBE, freeze, make_classification_loss, train_probe, unfreeze
from minift.methods.mlm import Masked, letters_of, make_mlm_loss
from minift.text.segments import collate_ids, collate_labelled

# The probe has no use for them.
OF_A_TRAINING = ("--epochs", "--accumulate", "--eval-every", "--dtype")


def mlm(options):
    """Continued masked training on plain text, with the accuracy on hidden tokens before and after."""
    if options.recipe:
        make_encoder(options)
        return
    if not options.model or not options.data:
        raise MiniftError("mlm needs --model DIR and --data FILE (or --recipe encoder, which begins from nothing)")
    run = Run(options, MaskedLanguageModel)
    data = load(options, partial(encode_pieces, tokenizer=run.tokenizer, context=run.context), ("text",))
    batches, valid = masked(run, data.train), masked(run, data.valid, fresh=False)
    if valid and all((batch["labels"] == IGNORE_INDEX).all() for batch in valid):
        valid, data.valid_from = [], "nothing (too short to hide a token of it): the last weights are kept"
        print(f"validation on {data.valid_from}")
    run.set_data(data)
    run.set_model(run.model)
    run.train(make_mlm_loss(run.model), batches, valid)
    run.finish()


def masked(run, documents, fresh=True):
    """Batches of the documents' pieces with hidden tokens: others in every epoch, or (fresh=False) always the same."""
    pieces = [piece for document in documents for piece in document]
    if not pieces:
        return []
    options, tokenizer = run.options, run.tokenizer
    batches = run.batches(pieces, lambda part: collate_ids([piece["input_ids"] for piece in part], tokenizer.pad_id),
                          shuffle=fresh)
    return Masked(batches, mask_id=tokenizer.special_id("<mask>"), special_ids=tokenizer.special.values(),
                  vocab_size=tokenizer.vocab_size, seed=options.seed, probability=options.hidden,
                  letters=letters_of(tokenizer) if options.whole_words else None, fresh=fresh)


def make_encoder(options):
    """Repeat the recipe of data/encoder, from nothing but its seed."""
    from minift.world import recipes
    check_out(options.out, overwrite=options.overwrite)
    manifest = recipes.pretrain_encoder(options.out)
    print(f"the encoder of {manifest['n_parameters']:,} parameters is in {options.out}")


def classify(options):
    """Train a head on an encoder, beside its baselines; with --predict, use a classifier that was trained before."""
    check_choice(options)
    if options.predict:
        label_rows(options)
        return
    run = Run(options, (MaskedLanguageModel, Encoder))
    data = load(options, partial(encode_labelled_row, tokenizer=run.tokenizer, context=run.context), ("label",))
    labels = class_names(data, held_out=not options.valid)
    run.set_data(data)
    model = SequenceClassifier(run.model.body, len(labels), options.pooling, labels)
    run.set_model(freeze(model) if options.regime == "freeze" else model)
    if options.regime == "freeze":
        with run.recorded():
            probe(run, data, options.lr, options.steps)
            run.save()
    else:
        if options.regime == "probe-then-full":
            unfreeze(probe(run, data))
        collate = partial(collate_labelled, pad_id=run.tokenizer.pad_id)
        run.train(make_classification_loss(model), run.batches(data.train, collate),
                  run.batches(data.valid, collate, shuffle=False))
    run.finish(**({"validation": measure(run, data, labels)} if data.valid else {}))


def check_choice(options):
    """MiniftError unless the options ask for one thing: training with --data and --out, or use with --predict."""
    if bool(options.data) == bool(options.predict):
        raise MiniftError("classify needs one of --data FILE, to train on, and --predict FILE, to use what was trained")
    if options.predict and (options.valid or options.regime != "freeze"):
        raise MiniftError("--predict trains nothing; leave out --valid, --full and --probe-then-full")
    if options.data and not options.out:
        raise MiniftError("classify --data needs --out DIR, a new folder for the classifier")
    given = {word.partition("=")[0] for word in options.argv}
    idle = [name for name in OF_A_TRAINING if name in given]
    if options.data and options.regime == "freeze" and idle:
        raise MiniftError(f"{', '.join(idle)}: of no use with --freeze, where the head alone is trained, on features "
                          "computed once; leave it out, or train all with --full")


def probe(run, data, lr=PROBE["lr"], steps=None):
    """Fit the head on the features of the frozen body; returns the model."""
    batches = labelled_batches(data.train, run.tokenizer.pad_id, run.options.batch_size)
    return train_probe(run.model, batches, lr=lr, steps=steps or PROBE["steps"], seed=run.options.seed)


def measure(run, data, labels):
    """What the classifier does on the validation rows, beside its baselines; printed and returned."""
    seed, n_label = run.options.seed, len(labels)
    train, valid = (labelled_batches(part, run.tokenizer.pad_id, run.options.batch_size)
                    for part in (data.train, data.valid))
    known, right = ([example["label"] for example in part] for part in (data.train, data.valid))
    rows, valid_rows = ([example["row"] for example in part] for part in (data.train, data.valid))
    probabilities = predict(run.model, valid).cpu()                          # (N, L)
    counts = confusion_matrix(probabilities.argmax(-1), right, range(n_label)).tolist()
    found = judge(probabilities, right)
    found["baselines"] = {
        "majority class": majority(known, right),
        "bag of words": bag_of_words(rows, known, valid_rows, right, n_label, seed=seed),
        "random encoder": random_encoder(run.model, train, valid, seed),
        "shuffled labels": shuffled_labels(run.model, train, valid, seed)}
    found["confusion_matrix"] = {"labels": labels, "counts": counts}
    print(f"\naccuracy on {len(right)} validation rows\n"
          f"  {'this classifier':<18}{found['accuracy']:.3f}  (95 %: {found['accuracy_95%']})")
    for name, value in found["baselines"].items():
        print(f"  {name:<18}{value:.3f}")
    print(f"macro F1 {found['macro_f1']:.3f}, expected calibration error {found['expected_calibration_error']:.3f}")
    print("\n".join(confusion_table(counts, labels)), end="\n\n")
    return found
