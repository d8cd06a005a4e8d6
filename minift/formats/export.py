"""A model of ours as a folder that Hugging Face transformers opens: the toy decoder is a Llama, the encoder a BERT.

The folder has config.json, model.safetensors, tokenizer.json, and tokenizer_config.json with the chat template. Left
out: classifiers and reward models, because transformers pools hidden states in another way.
"""

from pathlib import Path

import torch

from minift.core import files
from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel
from minift.errors import MiniftError
from minift.formats import byte_level, checkpoint, families, family_config, vocabulary, weights
from minift.formats.chat_template import write_template
from minift.text.wordpiece import LONGEST_WORD

CLASSES = {
    ("llama", LanguageModel): "LlamaForCausalLM",
    ("gpt2", LanguageModel): "GPT2LMHeadModel",
    ("bert", MaskedLanguageModel): "BertForMaskedLM",
    ("bert", Encoder): "BertModel"}


def export_pretrained(model, tokenizer, path):
    """Write the folder; weights as float32, the adapter merged in. tokenizer: may be None.

    Raises MiniftError for an adapter that is not merged, a NaN, a model that no family has, a folder of minift's own.
    """
    path, family = Path(path), family_config.find_family(model.config)
    name = CLASSES.get((family, type(model)))
    if name is None:
        raise MiniftError(f"no {family} of transformers is a {type(model).__name__}; export a decoder or an encoder")
    if checkpoint.find_writer(path) == "minift":
        raise MiniftError(f"{path} is a model folder of minift's own; choose another folder")
    tensors = make_tensors(model, family)
    weights.check_model(tensors, tokenizer, model.config, "the model to export")
    config = family_config.write_config(model, family) | {"architectures": [name], "dtype": "float32"}
    if tokenizer is not None:
        config |= {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        files.write_json(path / "tokenizer.json", tokenizer_json(tokenizer))
        files.write_json(path / "tokenizer_config.json", tokenizer_config(tokenizer, model.config))
    files.write_json(path / "config.json", config)
    files.write_tensors(path / "model.safetensors", tensors, {})


def make_tensors(model, family):
    """The family's name -> tensor."""
    parts = {}
    for name, tensor in weights.plain_state_dict(model).items():
        if families.is_transposed(name, family):
            tensor = tensor.T
        parts.setdefault(families.their_name(name, family), []).append(tensor.float())
    # In GPT-2, q, k and v are one matrix with one name.
    tensors = {name: torch.cat(part, dim=-1) for name, part in parts.items()}
    if family == "bert":
        tensors[families.SEGMENTS] = torch.zeros(2, model.config.d_model)
    if isinstance(model, Encoder):
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    return tensors


# ---- the tokenizer ----


def tokenizer_config(tokenizer, config):
    """tokenizer_config.json: the tokens for each role, and the chat template."""
    names = {i: name for name, i in tokenizer.special.items()}
    settings = {}
    for role in vocabulary.ROLES:
        name = names.get(tokenizer.roles.get(role, tokenizer.special.get(role)))
        if name is not None:
            settings[f"{role.strip('<>')}_token"] = name
    if tokenizer.kind.startswith("wordpiece"):
        settings["unk_token"] = "[UNK]"
    if tokenizer.chat is not None:
        settings["chat_template"] = write_template(tokenizer.chat)
    return settings | {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.context_length,
        "clean_up_tokenization_spaces": False}


def tokenizer_json(tokenizer):
    """tokenizer.json, as the `tokenizers` package reads it."""
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = sorted(tokenizer.special.items(), key=lambda item: item[1])
    added = [{"id": i, "content": name, **plain} for name, i in special]
    steps = wordpiece_steps(tokenizer) if tokenizer.kind.startswith("wordpiece") else bpe_steps(tokenizer)
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "post_processor": None, **steps}


def bpe_steps(tokenizer):
    """The steps of a byte-level BPE: our own regular expression cuts the text, then bytes become letters."""
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    vocab = {byte_level.spell_token(token): i for token, i in tokenizer.ranks.items()}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None,
        "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
        "vocab": vocab | tokenizer.special,
        "merges": list(byte_level.find_merges(tokenizer.ranks))}
    pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, level]}
    return {"pre_tokenizer": pre_tokenizer, "decoder": level, "model": model}


def wordpiece_steps(tokenizer):
    """The steps of a WordPiece tokenizer, which puts [CLS] and [SEP] around a text."""
    vocab, special = {}, tokenizer.special
    for token, i in tokenizer.ranks.items():
        word = token.decode()
        vocab[word[1:] if word.startswith(" ") else f"##{word}"] = i
    normalizer = {
        "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
        "strip_accents": None, "lowercase": tokenizer.kind == "wordpiece"}
    around = {"cls": ["[CLS]", special["[CLS]"]], "sep": ["[SEP]", special["[SEP]"]]}
    model = {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
        "max_input_chars_per_word": LONGEST_WORD, "vocab": vocab | special}
    return {
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", **around},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": model}
