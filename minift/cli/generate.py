"""Answer a prompt, or every JSONL row {"prompt"}; a {"text"} is continued as it is."""

from minift.cli import options as add
from minift.errors import MiniftError

EXAMPLES = [
    'generate --model data/base --raw --prompt "One sunny morning"',
    "generate --model data/base --data data/samples/prompts.jsonl --out runs/answers.jsonl"]


def add_options(parser):
    add.model(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="one prompt; the answer is printed")
    add.data(parser, 'JSONL rows {"prompt"}; each gets a "completion"', required=False)
    parser.add_argument("--out", metavar="FILE", help="the JSONL file for the rows (default: they are printed)")
    add.flag(parser, "--raw", "no chat template: go on from the prompt as it is")
    add.option(parser, "--batch-size", "N", add.COUNT, 32, "prompts at a time")
    add.sampling(parser)
    add.machine(parser)
    add.overwrite(parser)


def run(options):
    """Answer one prompt, or every row of JSONL files; rows keep what they have and get a "completion"."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.folders import check_out_file
    from minift.cli.models import open_kind, pick_device
    from minift.cli.rows import Row, find_files, put_rows, read_rows
    from minift.cli.sampling import room_to_answer, write_answers
    from minift.core.heads import LanguageModel
    if (options.prompt is None) == (options.data is None):
        raise MiniftError('generate needs one of --prompt "TEXT" and --data FILE.jsonl')
    if options.out:
        check_out_file(options.out, options.overwrite)
    # Read the prompts; each must leave room for an answer.
    model, tokenizer = open_kind(options.model, LanguageModel, "generate")
    rows = [Row("--prompt", "prompt", {"prompt": options.prompt})]
    if options.data:
        rows = read_rows(find_files(options.data), ("prompt", "completion", "pair", "text"))
    prompts = [prompt_ids(row, tokenizer, options.raw) for row in rows]
    for row, ids in zip(rows, prompts):
        room_to_answer(model, ids, options.max_new_tokens, row.where)
    # Answer them all, then write the rows.
    model.to(pick_device(options.device))
    answers = write_answers(
        model, tokenizer, prompts, max_new_tokens=options.max_new_tokens,
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        seed=options.seed, batch_size=options.batch_size)
    texts = [tokenizer.decode(answer, skip_special=True) for answer in answers]
    written = [completed(row.values, text) for row, text in zip(rows, texts)]
    if options.data or options.out:
        put_rows(options.out, written)
    else:
        print(texts[0])
    if options.out:
        print(f"{len(written)} answers written to {options.out}")


def completed(values, text):
    """A row with the model's answer; an answer that it came with becomes its reference."""
    old = {"reference": values["completion"]} if "completion" in values else {}
    return {**values, **old, "completion": text}


def prompt_ids(row, tokenizer, raw):
    """A row's prompt as ids: through the chat template, unless it is a {"text"} or --raw was given."""
    from minift.text.chat import chat_of, encode_prompt
    if row.form == "text":
        return tokenizer.encode(row.values["text"])
    prompt = row.values["prompt"]
    if not raw:
        return encode_prompt(tokenizer, chat_of(prompt, row.where))
    if not isinstance(prompt, str):
        raise MiniftError(f"{row.where}: with --raw a prompt must be a string, since messages need the chat template")
    return tokenizer.encode(prompt)
