"""Write an adapter and its base as one plain model."""

from minift.cli import options as add
from minift.errors import MiniftError

EXAMPLES = [
    "sft --model data/base --data data/samples/messages.jsonl --lora 8 --out runs/adapter",
    "merge --model runs/adapter --out runs/merged"]


def add_options(parser):
    add.model(parser, "the adapter folder")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder for the plain model")
    add.overwrite(parser)


def run(options):
    """Write an adapter's base with the adapter merged into it: a plain model folder, as fast as the base."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.folders import check_out, clear
    from minift.cli.models import is_adapter, open_model, plain_copy
    from minift.formats.checkpoint import save_model
    if not is_adapter(options.model):
        raise MiniftError(f"{options.model} has no adapter_config.json, so it is no adapter; there is nothing to merge")
    model, tokenizer = open_model(options.model)
    check_out(options.out, overwrite=options.overwrite, sources=[options.model])
    clear(options.out)
    save_model(plain_copy(model), tokenizer, options.out)
    print(f"the merged model is in {options.out}")
