"""Write a model as Hugging Face transformers reads it, or as a .gguf file."""

from pathlib import Path

from minift.cli import options as add

EXAMPLES = ["export --model data/base --out runs/exported"]


def add_options(parser):
    add.model(parser)
    parser.add_argument("--out", metavar="DIR", required=True, help="a new folder for the exported model")
    add.flag(parser, "--gguf", "one .gguf file in 16 bits, for llama.cpp, instead (decoders only)")
    add.overwrite(parser)


def run(options):
    """Write a model, any adapter merged in, as a folder for Hugging Face transformers, or with --gguf for llama.cpp."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.folders import check_out, clear
    from minift.cli.models import is_adapter, open_model, plain_copy
    from minift.formats.export import export_pretrained
    from minift.formats.export_gguf import export_gguf
    check_out(options.out, overwrite=options.overwrite, sources=[options.model])
    model, tokenizer = open_model(options.model)
    model = plain_copy(model) if is_adapter(options.model) else model
    clear(options.out)
    if options.gguf:
        export_gguf(model, tokenizer, Path(options.out) / "model-f16.gguf")
    else:
        export_pretrained(model, tokenizer, options.out)
    print(f"the exported model is in {options.out}")
