"""The verbs that train on fixed data: pretrain, sft, reward, dpo. They differ in examples and loss, in little else."""

from functools import partial
from itertools import islice

import torch

from minift.cli.data import find_files, read_rows, sha256
from minift.cli.encoders import encode_dialogue, encode_preference, encode_text
from minift.cli.examples import Tally, load
from minift.cli.folders import check_out
from minift.cli.run import Run
from minift.cli.sampling import continuation
from minift.core.heads import TokenScorer
from minift.core.logprobs import make_reference
from minift.errors import MiniftError
from minift.evaluation.metrics import perplexity
from minift.methods.dpo import add_reference_logprobs, make_dpo_loss
from minift.methods.lora import base_reference
from minift.methods.pretrain import make_pretrain_loss, replay
from minift.methods.reward import make_reward_loss, normalise_scores, score_pairs
from minift.methods.sft import make_sft_loss
from minift.text.batches import Windows, collate, token_windows
from minift.text.pairs import collate_pairs

# Tokens of the text that a sample goes on from, and of the sample.
SAMPLE_PROMPT, SAMPLE_LENGTH = 16, 80
# Batches of pairs that tell the mean and the spread of a reward model.
SCORED = 32


def pretrain(options):
    """Continued pre-training on plain text, with perplexity and a sample before and after."""
    if options.recipe:
        make_base(options)
        return
    if not options.model or not options.data:
        raise MiniftError("pretrain needs --model DIR and --data FILE (or --recipe base, which begins from nothing)")
    run = Run(options)
    data = load(options, partial(encode_text, tokenizer=run.tokenizer), ("text",))
    windows = join_windows(run, data.train)
    if options.replay:
        windows = replay(windows, join_windows(run, old_text(run, data)), options.replay_share, options.seed)
    run.set_data(data)
    run.set_model(run.model)
    valid = [{"input_ids": ids, "labels": ids} for example in data.valid
             for ids in token_windows(example["input_ids"], run.context - 1)]
    valid = run.batches(valid, partial(collate, pad_id=run.tokenizer.pad_id), shuffle=False)
    prompt = (data.valid or data.train)[0]["input_ids"][:SAMPLE_PROMPT]
    sample = partial(continuation, run.model, run.tokenizer, prompt, SAMPLE_LENGTH, options.seed)
    texts = {"sample_before": sample()}
    before, after = run.train(make_pretrain_loss(run.model), windows, valid)
    texts["sample_after"] = sample()
    for name, text in texts.items():
        print(f"{name}:\n{text}\n")
    if after:
        before["valid_perplexity"] = perplexity(before["valid_loss"], 1)
        after["valid_perplexity"] = perplexity(after["valid_loss"], 1)
    run.finish(**texts)


def join_windows(run, examples):
    """Windows over all documents joined, as long as the context, or as a text that is shorter than it."""
    ids = [i for example in examples for i in example["input_ids"]]
    return Windows(ids, min(run.context, len(ids)), run.options.batch_size, run.options.seed)


def old_text(run, data):
    """The documents of --replay; their files are noted among the run's data."""
    files = find_files(run.options.replay)
    data.files |= {path.as_posix(): sha256(path) for path in files}
    examples = [encode_text(row, Tally(), run.tokenizer) for row in read_rows(files, ("text",))]
    return [example for example in examples if example is not None]


def make_base(options):
    """Repeat the recipe of data/base, from nothing but its seed."""
    from minift.world import recipes
    check_out(options.out, overwrite=options.overwrite)
    manifest = recipes.pretrain_base(options.out)
    print(f"the base model of {manifest['n_parameters']:,} parameters is in {options.out}")


def sft(options):
    """Supervised fine-tuning: the loss is on the assistant's tokens only."""
    run = Run(options)
    encode = partial(encode_dialogue, tokenizer=run.tokenizer, context=run.context)
    data = load(options, encode, ("messages", "completion"))
    run.set_data(data)
    run.set_model(run.model)
    make_batches = partial(run.batches, collate=partial(collate, pad_id=run.tokenizer.pad_id))
    run.train(make_sft_loss(run.model), make_batches(data.train), make_batches(data.valid, shuffle=False))
    run.finish()


def load_pairs(run):
    """Preference pairs as Data, and the function that makes batches of them."""
    encode = partial(encode_preference, tokenizer=run.tokenizer, context=run.context)
    data = load(run.options, encode, ("pair",))
    run.set_data(data)
    return data, partial(run.batches, collate=partial(collate_pairs, pad_id=run.tokenizer.pad_id))


def reward(options):
    """A reward model: the language model's body and a score head; in the end its scores get mean 0 and std 1."""
    run = Run(options)
    data, make_batches = load_pairs(run)
    run.set_model(TokenScorer(run.model.body))
    run.train(make_reward_loss(run.model), make_batches(data.train), make_batches(data.valid, shuffle=False))
    some = islice(make_batches(data.train), SCORED)
    scores = [side for pair in score_pairs(run.model, some) for side in pair]
    normalise_scores(run.model, torch.cat(scores))
    run.save()
    run.finish()


def dpo(options):
    """Direct preference optimization against the model as it came; the reference runs once, before the training."""
    run = Run(options)
    data, make_batches = load_pairs(run)
    run.set_model(run.model)
    reference = base_reference(run.model) if options.lora else make_reference(run.model)
    for examples in (data.train, data.valid):
        add_reference_logprobs(examples, reference, run.tokenizer.pad_id, options.batch_size, run.device)
    loss_fn = make_dpo_loss(run.model, options.beta, options.label_smoothing)
    run.train(loss_fn, make_batches(data.train), make_batches(data.valid, shuffle=False))
    run.finish()
