"""Continued pre-training on plain text: .txt, .md, or JSONL rows {"text"}."""

from functools import partial

from minift.cli import options as add

EXAMPLES = ["pretrain --model data/base --data data/samples/text.jsonl --out runs/pretrain"]
# Tokens of the text that a sample continues, and tokens of the sample.
SAMPLE_PROMPT, SAMPLE_LENGTH = 16, 80


def add_options(parser):
    add.model(parser, required=False)
    add.data(parser, 'text files; patterns such as "plays/*.md" are expanded', required=False)
    add.files(parser)
    parser.add_argument("--recipe", metavar="NAME", choices=("base",), help='"base" makes data/base anew, from nothing')
    parser.add_argument("--replay", metavar="FILE", nargs="+", help="old text to mix in against forgetting")
    add.option(parser, "--replay-share", "X", add.number(float, 0, most=0.99), 0.3, "its share of the rows")
    add.training(parser, "pretrain")


def run(options):
    """Pre-train, with the perplexity and a sample before and after."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.encoders import encode_text
    from minift.cli.examples import load
    from minift.cli.run import Run, repeat_recipe
    from minift.cli.sampling import continuation
    from minift.evaluation.metrics import perplexity
    from minift.methods.pretrain import make_pretrain_loss, replay
    from minift.text.batches import collate, token_windows
    if repeat_recipe(options, "base"):
        return

    # 1. The data: windows over all documents; with --replay some rows are replaced by old text.
    run = Run(options)
    data = load(options, partial(encode_text, tokenizer=run.tokenizer), ("text",))
    windows = join_windows(run, data.train)
    if options.replay:
        old = join_windows(run, read_old_text(options.replay, run.tokenizer, data))
        windows = replay(windows, old, options.replay_share, options.seed)
    run.set_data(data)
    run.set_model(run.model)
    valid = []
    for example in data.valid:
        valid += [{"input_ids": ids, "labels": ids} for ids in token_windows(example["input_ids"], run.context - 1)]
    valid = run.batches(valid, collate, shuffle=False)

    # 2. Train, with a sample before and one after, both from the same prompt.
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
    """Windows over all documents joined. A window is as long as the context, or as the text if that is shorter."""
    from minift.text.batches import Windows
    ids = []
    for example in examples:
        ids += example["input_ids"]
    return Windows(ids, min(run.context, len(ids)), run.settings.batch_size, run.options.seed)


def read_old_text(patterns, tokenizer, data):
    """The documents of --replay; their files are noted among the run's data."""
    from minift.cli.encoders import encode_text
    from minift.cli.examples import Tally
    from minift.cli.rows import find_files, read_rows, sha256
    files = find_files(patterns)
    data.files |= {path.as_posix(): sha256(path) for path in files}
    examples = [encode_text(row, Tally(), tokenizer) for row in read_rows(files, ("text",))]
    return [example for example in examples if example is not None]
