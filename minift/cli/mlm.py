"""Masked training of an encoder on plain text: .txt, .md, or JSONL rows {"text"}."""

from functools import partial
from itertools import chain

from minift.cli import options as add

EXAMPLES = ["mlm --model data/encoder --data data/samples/text.jsonl --out runs/mlm"]


def add_options(parser):
    add.model(parser, "an encoder's folder", required=False)
    add.data(parser, 'text files; patterns such as "mine/*.md" are expanded', required=False)
    add.files(parser)
    parser.add_argument("--recipe", metavar="NAME", choices=("encoder",), help='"encoder" makes data/encoder anew')
    share = add.number(float, 0, above=True, most=0.99)
    add.option(parser, "--hidden", "X", share, 0.15, "share of the tokens to hide")
    add.flag(parser, "--whole-words", "hide all tokens of a word together")
    add.training(parser, "mlm")


def run(options):
    """Continued masked training on plain text, with the accuracy on hidden tokens before and after."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.encoders import encode_pieces
    from minift.cli.examples import load
    from minift.cli.run import Run, repeat_recipe
    from minift.core.heads import MaskedLanguageModel
    from minift.core.logprobs import IGNORE_INDEX
    from minift.methods.mlm import make_mlm_loss
    if repeat_recipe(options, "encoder"):
        return
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
    """Batches of the documents' pieces with hidden tokens: new ones in each epoch, or (fresh=False) always the same."""
    from minift.methods.mlm import Masked, letters_of
    from minift.text.segments import collate_ids
    pieces = list(chain.from_iterable(documents))
    if not pieces:
        return []
    options, tokenizer = run.options, run.tokenizer
    batches = run.batches(
        pieces, lambda part, pad_id: collate_ids([piece["input_ids"] for piece in part], pad_id),
        shuffle=fresh)
    letters = letters_of(tokenizer) if options.whole_words else None
    return Masked(
        batches, mask_id=tokenizer.special_id("<mask>"), special_ids=tokenizer.special.values(),
        vocab_size=tokenizer.vocab_size, seed=options.seed, probability=options.hidden,
        letters=letters, fresh=fresh)
