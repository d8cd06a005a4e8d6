"""Open what --model names, a model folder or an adapter folder, and check that it suits the verb."""

from pathlib import Path

import torch

from minift.core.files import read_json
from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel, SequenceClassifier, TokenScorer
from minift.errors import MiniftError
from minift.formats.adapter import load_adapter
from minift.formats.checkpoint import build_model, copy_weights, describe_model, load_model
from minift.formats.pretrained import locate
from minift.formats.weights import plain_state_dict
from minift.methods.lora import find_lora, merge_lora

KINDS = {
    LanguageModel: "a language model", MaskedLanguageModel: "an encoder (a masked language model)",
    Encoder: "an encoder without a head", SequenceClassifier: "a classifier", TokenScorer: "a reward model"}


def is_adapter(path):
    """Whether a folder holds an adapter and not a whole model."""
    return (Path(path) / "adapter_config.json").is_file()


def open_model(path):
    """(model, tokenizer) of a folder. An adapter is put into its base, which the adapter's config names.

    The adapter of a reward model holds the score head too, so only the body of the base is used.
    """
    if not is_adapter(path):
        return load_model(path)
    file = Path(path) / "adapter_config.json"
    config = read_json(file)
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    try:
        model, tokenizer = open_model(locate(base or "(not named)"))
    except MiniftError as error:
        raise MiniftError(
            f"{path} is an adapter for the model {base}, which cannot be opened from {Path.cwd()}: "
            f"{error}; go where it is, or correct base_model_name_or_path in {file}") from error
    if is_adapter(base):
        model = plain_copy(model)
    if config.get("task_type") == "SEQ_CLS" and isinstance(model, LanguageModel):
        model = TokenScorer(model.body)
    return load_adapter(model, path).eval(), tokenizer


def open_kind(path, kind, purpose):
    """open_model, for a model that must be of one kind (or one of several) and have a tokenizer.

    purpose: the verb or option that needs it, for the error.
    """
    model, tokenizer = open_model(path)
    if not isinstance(model, kind):
        needed = " or ".join(KINDS[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
        raise MiniftError(f"{path} is {KINDS[type(model)]}; {purpose} needs {needed}")
    if tokenizer is None:
        raise MiniftError(f"{path} has no tokenizer, so it cannot read text; save the model together with one")
    return model, tokenizer


def plain_copy(model):
    """A model without LoRA that computes what `model` computes: any adapter is merged into its weights."""
    if find_lora(model):
        merge_lora(model)
    copy = build_model(describe_model(model), Path("model"))
    copy_weights(copy, plain_state_dict(model), "the merged model")
    return copy.eval()


def check_tokenizers(first, second, *names):
    """MiniftError unless two models read text in the same way. names: what the error calls them."""
    if first.hash() != second.hash():
        raise MiniftError(
            f"{names[0]} and {names[1]} have different tokenizers, so the same ids mean different "
            "texts; use models that come from one base")


def context_of(model, asked):
    """Tokens that a row may have: the model's context, or fewer when --context asks for it."""
    longest = model.config.context_length
    if asked and asked > longest:
        raise MiniftError(f"--context {asked} is beyond the model's context of {longest} tokens; take at most that")
    return asked or longest


def pick_device(name):
    """The torch.device that --device names; "auto" is the best there is.

    Raises MiniftError when a device is asked for that this machine does not have.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = [device for device in there if there[device]]
    if name == "auto":
        return torch.device(found[0])
    if name not in found:
        raise MiniftError(
            f"--device {name}: PyTorch {torch.__version__} finds only {', '.join(found)} on this "
            "machine; use --device auto")
    return torch.device(name)
