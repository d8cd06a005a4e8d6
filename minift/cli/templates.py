"""Labelled rows become chats for sft, through a file of templates."""

from minift.cli import options as add

EXAMPLES = [
    "templates --data data/samples/labels.jsonl --templates data/samples/templates.json "
    "--out runs/chats.jsonl"]
# What a row of `label annotate` says of one person.
PERSONAL = ("annotator", "seconds", "time")


def add_options(parser):
    add.data(parser, 'JSONL rows with the templates\' fields; of "label annotate", the rows of all annotators')
    parser.add_argument(
        "--templates", metavar="FILE", required=True,
        help='JSON: {task: {"cluster", "templates": [{"instruction", "response"}, ...]}}')
    parser.add_argument(
        "--split", metavar="NAME", choices=("seen", "held-out"), default="seen",
        help="which templates: seen, or held-out, to test on (default seen)")
    add.flag(parser, "--no-inverted", "leave out templates that ask for the text and give the label")
    parser.add_argument("--out", metavar="FILE", required=True, help="the JSONL file for the chats")
    add.option(parser, "--seed", "N", add.WHOLE, 0, "of which template a row gets")
    add.overwrite(parser)


def run(options):
    """Put the rows of --data through --templates, and write them to --out."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.folders import check_out_file
    from minift.cli.rows import find_files
    from minift.text.jsonl import read_jsonl, write_jsonl
    from minift.ways.templates import instantiate, read_templates
    check_out_file(options.out, options.overwrite)
    known, chats = read_templates(options.templates), []
    for path in find_files(options.data):
        rows = read_jsonl(path)
        if all("annotator" in row and "label" in row and "id" in row for row in rows):
            rows = adjudicated(rows)
        chats += instantiate(
            rows, known, split=options.split, seed=options.seed, inverted=not options.no_inverted,
            name=f"{path}, row")
    write_jsonl(options.out, chats)
    print(f"{len(chats)} chats of {len({chat['task'] for chat in chats})} tasks, written to {options.out}")


def adjudicated(rows):
    """One row for each item, with the label that Dawid and Skene's model finds; one annotator's labels stay."""
    from minift.ways import annotation
    items = {row["id"]: {key: value for key, value in row.items() if key not in PERSONAL} for row in rows}
    people = sorted({row["annotator"] for row in rows})
    said = {(row["annotator"], row["id"]): row["label"] for row in rows}
    if len(said) == len(items):
        return list(items.values())
    ratings = [[said.get((name, item)) for item in items] for name in people]
    posteriors, _, labels = annotation.dawid_skene(ratings)
    best = dict(zip(items, (labels[i] for i in posteriors.argmax(1))))
    kept = [{**item, "label": best[name]} for name, item in items.items()]
    changed = sum(label != best[item] for (_, item), label in said.items())
    print(f"{len(items)} items, labelled {len(said)} times by {', '.join(people)}; {changed} labels were overruled")
    return kept
