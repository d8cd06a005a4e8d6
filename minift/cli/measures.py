"""What evaluate measures: perplexity of texts, exact match of answers, accuracy on pairs and labels.

Means come with their 95 % intervals.
"""

from functools import partial

from minift.cli.classes import number_labels
from minift.cli.encoders import encode_labelled_row, encode_preference, encode_text, messages_of
from minift.cli.examples import Tally, encode_row
from minift.cli.folders import check_out_file
from minift.cli.models import check_tokenizers, context_of, open_kind, pick_device
from minift.cli.options import window
from minift.cli.rows import find_files, read_rows
from minift.cli.sampling import room_to_answer, write_answers
from minift.core.files import write_json
from minift.core.heads import LanguageModel, SequenceClassifier, TokenScorer
from minift.core.logprobs import make_reference
from minift.errors import MiniftError
from minift.evaluation.baselines import labelled_batches, predict
from minift.evaluation.metrics import (
    bootstrap_interval,
    exact_match,
    expected_calibration_error,
    language_model_nll,
    macro_f1,
    perplexity,
)
from minift.methods.dpo import add_reference_logprobs
from minift.methods.reward import score_pairs
from minift.text.batches import Batches, collate, token_windows
from minift.text.chat import encode_prompt
from minift.text.pairs import collate_pairs


def evaluate(options):
    """Measure a model on rows of the forms that suit it; print the numbers, and write them to --out if given."""
    if options.out:
        check_out_file(options.out, options.overwrite)
    if not options.data:
        raise MiniftError("--data is missing; name the file that is to be measured on")
    # Read only the forms of rows that the model can be judged on.
    files = find_files(options.data)
    model, tokenizer = open_kind(options.model, (LanguageModel, TokenScorer, SequenceClassifier), "evaluate")
    rows = read_rows(files, [form for form in MEASURES if (form == "label") == isinstance(model, SequenceClassifier)])
    if isinstance(model, TokenScorer) and any(row.form != "pair" for row in rows):
        raise MiniftError(
            f"{options.model} is a reward model, which can be judged on {{prompt, chosen, rejected}} "
            "rows only")
    # Measure the rows of each form by its own measure.
    model.to(pick_device(options.device))
    found = {}
    for measure in dict.fromkeys(MEASURES.values()):
        part = [row for row in rows if MEASURES[row.form] is measure]
        found |= measure(model, tokenizer, part, options) if part else {}
    for name, value in found.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        print(f"{name}: {shown}")
    if options.out:
        write_json(options.out, {"model": options.model, "data": options.data, **found})


def text_measures(model, tokenizer, rows, options):
    """Perplexity over all tokens. A long text is cut into windows of --context tokens; each is read on its own."""
    context = context_of(model, window(model, options.context))
    texts = [encode_text(row, Tally(), tokenizer) for row in rows]
    windows = []
    for text in filter(None, texts):
        windows += [{"input_ids": ids, "labels": ids} for ids in token_windows(text["input_ids"], context - 1)]
    batches = Batches(windows, options.batch_size, lambda part: collate(part, tokenizer.pad_id), shuffle=False)
    nll, n_tokens = language_model_nll(model, batches)
    return {"texts": len(rows), "tokens": n_tokens, "loss": nll / n_tokens, "perplexity": perplexity(nll, n_tokens)}


def answer_measures(model, tokenizer, rows, options):
    """Exact match of the greedy answer with the last assistant turn, and how many answers end by themselves."""
    prompts, references = [], []
    for row in rows:
        messages = messages_of(row)
        last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
        prompts.append(encode_prompt(tokenizer, messages[:last]))
        references.append(messages[last]["content"])
        room_to_answer(model, prompts[-1], options.max_new_tokens, row.where)
    answers = write_answers(
        model, tokenizer, prompts, max_new_tokens=options.max_new_tokens, temperature=0.0,
        batch_size=options.batch_size)
    texts = [tokenizer.decode(answer, skip_special=True) for answer in answers]
    for reference, text in list(zip(references, texts))[:options.show]:
        print(f"expected: {reference}\n     got: {text}")
    hits = [exact_match([text], [reference]) for text, reference in zip(texts, references)]
    ended = [float(answer[-1:] == [tokenizer.eos_id]) for answer in answers]
    return {"answers": len(hits), **with_interval("exact_match", hits), **with_interval("ends_with_eos", ended)}


def pair_measures(model, tokenizer, rows, options):
    """How often the chosen answer gets more than the rejected one: score, implicit reward, or log-probability."""
    context = context_of(model, options.context)
    examples, _ = encode_usable(rows, partial(encode_preference, tokenizer=tokenizer, context=context), "pair")
    if isinstance(model, TokenScorer):
        name, gaps = "pair_accuracy", score_gaps(model, examples, tokenizer, options.batch_size)
    else:
        name, gaps = "logprob_accuracy", logprob_gaps(model, examples, tokenizer, options.batch_size)
        if options.reference:
            reference, its_tokenizer = open_kind(options.reference, LanguageModel, "--reference")
            check_tokenizers(tokenizer, its_tokenizer, options.model, options.reference)
            reference.to(pick_device(options.device))
            before = logprob_gaps(reference, examples, tokenizer, options.batch_size)
            name, gaps = "implicit_reward_accuracy", [gap - old for gap, old in zip(gaps, before)]
    return {"pairs": len(gaps), **with_interval(name, [float(gap > 0) for gap in gaps]), **with_interval("gap", gaps)}


def score_gaps(model, examples, tokenizer, batch_size):
    """Chosen minus rejected score of each pair."""
    batches = Batches(examples, batch_size, lambda part: collate_pairs(part, tokenizer.pad_id), shuffle=False)
    gaps = []
    for chosen, rejected in score_pairs(model, batches):
        gaps += (chosen - rejected).tolist()
    return gaps


def logprob_gaps(model, examples, tokenizer, batch_size):
    """log p(chosen) - log p(rejected) of each pair: nats, summed over the answers."""
    copies = [dict(example) for example in examples]
    device = next(model.parameters()).device
    add_reference_logprobs(copies, make_reference(model), tokenizer.pad_id, batch_size, device)
    return [example["ref_chosen_logprobs"] - example["ref_rejected_logprobs"] for example in copies]


def label_measures(model, tokenizer, rows, options):
    """What a classifier does on rows with a label."""
    encode = partial(encode_labelled_row, tokenizer=tokenizer, context=context_of(model, options.context))
    examples, tally = encode_usable(rows, encode, "row")
    number_labels(examples, model.labels, "the classifier knows")
    print(tally)
    probabilities = predict(model, labelled_batches(examples, tokenizer.pad_id, options.batch_size))
    return {"rows": len(examples), **judge(probabilities, [example["label"] for example in examples])}


def encode_usable(rows, encode, name):
    """(examples, tally) of the rows that can be used; MiniftError when there is none. name: of a row, for the error."""
    tally = Tally(read=len(rows))
    examples = [encode_row(encode, row, tally, None) for row in rows]
    examples = [example for example in examples if example is not None]
    tally.used = len(examples)
    if not examples:
        raise MiniftError(f"dataset is empty: no {name} is left ({tally})")
    return examples, tally


def judge(probabilities, right):
    """Accuracy, macro F1 and calibration of probabilities (N, L); right: the number of each row's label."""
    confidences, guesses = (values.tolist() for values in probabilities.max(-1))
    hits = [float(guess == label) for guess, label in zip(guesses, right, strict=True)]
    return {
        **with_interval("accuracy", hits), "macro_f1": macro_f1(guesses, right),
        "expected_calibration_error": expected_calibration_error(confidences, hits)}


def with_interval(name, values):
    """The mean of some values, and where it lies with a confidence of 95 %."""
    low, high = bootstrap_interval(values)
    return {name: sum(values) / len(values), f"{name}_95%": f"{low:.3g} to {high:.3g}"}


MEASURES = {
    "text": text_measures, "messages": answer_measures, "completion": answer_measures, "pair": pair_measures,
    "label": label_measures}
