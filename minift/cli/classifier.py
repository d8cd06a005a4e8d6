"""Train a classifier: a head on an encoder that is frozen or trained too; then measure it beside its baselines."""

from functools import partial

from minift.cli.classes import class_names, confusion_table
from minift.cli.encoders import encode_labelled_row
from minift.cli.examples import load
from minift.cli.measures import judge
from minift.cli.run import Run
from minift.core.heads import Encoder, MaskedLanguageModel, SequenceClassifier
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
from minift.text.segments import collate_labelled

# Options without effect when only the head is trained.
OF_A_TRAINING = ("--epochs", "--accumulate", "--eval-every", "--dtype")


def train_classifier(options):
    """Train a head on an encoder, and measure it beside its baselines."""
    run = Run(options, (MaskedLanguageModel, Encoder))
    data = load(options, partial(encode_labelled_row, tokenizer=run.tokenizer, context=run.context), ("label",))
    labels = class_names(data, held_out=not options.valid)
    run.set_data(data)
    model = SequenceClassifier(run.model.body, len(labels), options.pooling, labels)
    if options.regime == "freeze":
        run.set_model(freeze(model))
        with run.recorded():
            probe(run, data, run.settings.lr, options.steps)
            run.save()
    else:
        run.set_model(model)
        if options.regime == "probe-then-full":
            unfreeze(probe(run, data))
        batches = run.batches(data.train, collate_labelled)
        valid = run.batches(data.valid, collate_labelled, shuffle=False)
        run.train(make_classification_loss(model), batches, valid)
    result = {"validation": measure(run, data, labels)} if data.valid else {}
    run.finish(**result)


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
        raise MiniftError(
            f"{', '.join(idle)}: of no use with --freeze, where the head alone is trained, on features "
            "computed once; leave it out, or train all with --full")


def probe(run, data, lr=PROBE["lr"], steps=None):
    """Fit the head on the features of the frozen body; returns the model."""
    batches = labelled_batches(data.train, run.tokenizer.pad_id, run.settings.batch_size)
    return train_probe(run.model, batches, lr=lr, steps=steps or PROBE["steps"], seed=run.options.seed)


def measure(run, data, labels):
    """What the classifier does on the validation rows, beside its baselines; printed and returned."""
    seed, n_label = run.options.seed, len(labels)
    train, valid = (
        labelled_batches(part, run.tokenizer.pad_id, run.settings.batch_size)
        for part in (data.train, data.valid))
    known, right = ([example["label"] for example in part] for part in (data.train, data.valid))
    rows, valid_rows = ([example["row"] for example in part] for part in (data.train, data.valid))
    # Judge the classifier, and the baselines beside it.
    probabilities = predict(run.model, valid).cpu()  # (N, L)
    counts = confusion_matrix(probabilities.argmax(-1), right, range(n_label)).tolist()
    found = judge(probabilities, right)
    found["baselines"] = {
        "majority class": majority(known, right),
        "bag of words": bag_of_words(rows, known, valid_rows, right, n_label, seed=seed),
        "random encoder": random_encoder(run.model, train, valid, seed),
        "shuffled labels": shuffled_labels(run.model, train, valid, seed)}
    # Show the numbers, and the confusion matrix below them.
    found["confusion_matrix"] = {"labels": labels, "counts": counts}
    print(
        f"\naccuracy on {len(right)} validation rows\n"
        f"  {'this classifier':<18}{found['accuracy']:.3f}  (95 %: {found['accuracy_95%']})")
    for name, value in found["baselines"].items():
        print(f"  {name:<18}{value:.3f}")
    print(f"macro F1 {found['macro_f1']:.3f}, expected calibration error {found['expected_calibration_error']:.3f}")
    print("\n".join(confusion_table(counts, labels)), end="\n\n")
    return found
