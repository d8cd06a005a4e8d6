"""A classifier on an encoder, from JSONL rows {"text", "label"}; and its use."""

from minift.cli import options as add

EXAMPLES = [
    "classify --model data/encoder --data data/samples/labels.jsonl --out runs/labels",
    "classify --model runs/labels --predict data/samples/unlabelled.jsonl --out runs/labelled.jsonl"]


def add_options(parser):
    """Either training, with --data, or use, with --predict."""
    add.model(parser, "an encoder's folder; with --predict a classifier's")
    add.data(parser, 'JSONL rows {"text", "label"}, and "text_pair" for a second text', required=False)
    parser.add_argument("--predict", metavar="FILE", nargs="+", help='rows {"text"}; each gets a "label"')
    add.files(parser, "a new folder; with --predict a file (default: rows are printed)", required=False)
    regime = parser.add_mutually_exclusive_group()
    for name, text in (
            ("--freeze", "train the head alone, on features computed once (default; 400 steps)"),
            ("--full", "train the encoder along with the head"),
            ("--probe-then-full", "first the head alone, then all")):
        regime.add_argument(name, dest="regime", action="store_const", const=name[2:], default="freeze", help=text)
    parser.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="what of a text the head reads")
    add.training(parser, "classify")


def run(options):
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.classifier import check_choice, train_classifier
    from minift.cli.predict import label_rows
    check_choice(options)
    if options.predict:
        label_rows(options)
    else:
        train_classifier(options)
