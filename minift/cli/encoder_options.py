"""The options of the verbs that train an encoder: mlm and classify."""

from minift.cli import options as add


def mlm(sub, verb):
    add.model(sub, "an encoder's folder", required=False)
    add.data(sub, 'text files; patterns such as "mine/*.md" are expanded', required=False)
    add.files(sub)
    sub.add_argument("--recipe", metavar="NAME", choices=("encoder",), help='"encoder" makes data/encoder anew')
    add.option(sub, "--hidden", "X", add.number(float, 0, above=True, most=0.99), 0.15, "share of the tokens to hide")
    add.flag(sub, "--whole-words", "hide all tokens of a word together")
    add.training(sub, verb)


def classify(sub, verb):
    """Either training, with --data, or use, with --predict."""
    add.model(sub, "an encoder's folder; with --predict a classifier's")
    add.data(sub, 'JSONL rows {"text", "label"}, and "text_pair" for a second text', required=False)
    sub.add_argument("--predict", metavar="FILE", nargs="+", help='rows {"text"}; each gets a "label"')
    add.files(sub, "a new folder; with --predict a file (default: rows are printed)", required=False)
    regime = sub.add_mutually_exclusive_group()
    for name, text in (("--freeze", "train the head alone, on features computed once (default; 400 steps)"),
                       ("--full", "train the encoder along with the head"),
                       ("--probe-then-full", "first the head alone, then all")):
        regime.add_argument(name, dest="regime", action="store_const", const=name[2:], default="freeze", help=text)
    sub.add_argument("--pooling", choices=("mean", "cls"), default="mean", help="what of a text the head reads")
    add.training(sub, verb)
