"""A model of ours as a folder that Hugging Face transformers opens: the toy decoder is a Llama, the encoder a BERT.

config.json, model.safetensors, and the tokenizer as tokenizer.json with its chat template. Left out: classifiers and
reward models, whose pooling transformers does not have.
"""

from pathlib import Path

import torch

from minift.core import files
from minift.core.heads import Encoder, LanguageModel, MaskedLanguageModel
from minift.errors import MiniftError
from minift.formats.checkpoint import find_writer
from minift.formats.families import SEGMENTS, family_of, their_name, transposed
from minift.formats.vocabulary import byte_alphabet
from minift.formats.weights import check_finite, check_vocabulary, plain_state_dict
from minift.text.wordpiece import LONGEST_WORD

ARCHITECTURES = {("llama", LanguageModel): "LlamaForCausalLM", ("gpt2", LanguageModel): "GPT2LMHeadModel",
                 ("bert", MaskedLanguageModel): "BertForMaskedLM", ("bert", Encoder): "BertModel"}


def export_pretrained(model, tokenizer, path):
    """Write the folder; weights as float32, the adapter merged in. tokenizer: may be None.

    Raises MiniftError for an adapter that is not merged, a NaN, a model that no family has, a folder of minift's own.
    """
    path, family = Path(path), family_of(model.config)
    if (family, type(model)) not in ARCHITECTURES:
        raise MiniftError(f"Hugging Face has no class for a {type(model).__name__} of this body ({family}); export the "
                          "language model or the encoder")
    if find_writer(path) == "minift":
        raise MiniftError(f"{path} holds a model folder of minift's own; export into another folder")
    check_vocabulary(tokenizer, model.config, "the model to export")
    tensors = their_tensors(model, family)
    check_finite(tensors, "the model to export")
    config = their_config(model, family) | {"architectures": [ARCHITECTURES[family, type(model)]], "dtype": "float32"}
    if tokenizer is not None:
        config |= {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
        files.write_json(path / "tokenizer.json", tokenizer_json(tokenizer))
        files.write_json(path / "tokenizer_config.json", tokenizer_config(tokenizer, model.config))
    files.write_json(path / "config.json", config)
    files.write_tensors(path / "model.safetensors", tensors, {})


def their_config(model, family):
    """The sizes under Hugging Face's names."""
    c = model.config
    tied = not isinstance(model, LanguageModel) or model.head.weight is model.body.embed.weight
    common = {"model_type": family, "vocab_size": c.vocab_size, "tie_word_embeddings": tied}
    if family == "gpt2":
        return common | {"n_positions": c.context_length, "n_embd": c.d_model, "n_layer": c.n_layer, "n_head": c.n_head,
                         "n_inner": c.d_ff, "activation_function": "gelu_new", "layer_norm_epsilon": c.norm_eps,
                         "resid_pdrop": c.dropout, "embd_pdrop": c.dropout, "attn_pdrop": c.dropout}
    common |= {"max_position_embeddings": c.context_length, "hidden_size": c.d_model, "num_hidden_layers": c.n_layer,
               "num_attention_heads": c.n_head, "intermediate_size": c.d_ff}
    if family == "bert":
        return common | {"hidden_act": "gelu", "layer_norm_eps": c.norm_eps, "type_vocab_size": 2,
                         "hidden_dropout_prob": c.dropout, "attention_probs_dropout_prob": c.dropout}
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    scaling = c.rope_scaling and {"rope_type": "llama3", **dict(zip(names, c.rope_scaling))}
    return common | {"num_key_value_heads": c.n_kv_head, "hidden_act": "silu", "rms_norm_eps": c.norm_eps,
                     "attention_dropout": c.dropout, "rope_theta": c.rope_theta, "rope_scaling": scaling}


def their_tensors(model, family):
    """The family's name -> tensor."""
    parts = {}
    for name, tensor in plain_state_dict(model).items():
        tensor = tensor.T if transposed(name, family) else tensor
        parts.setdefault(their_name(name, family), []).append(tensor.float())
    tensors = {name: torch.cat(part, dim=-1) for name, part in parts.items()}    # GPT-2's q, k, v have one name
    if family == "bert":
        tensors[SEGMENTS] = tensors["bert.embeddings.word_embeddings.weight"].new_zeros(2, model.config.d_model)
    bare = isinstance(model, Encoder)
    return {name.removeprefix("bert.") if bare else name: tensor for name, tensor in tensors.items()}


# ---- the tokenizer ----


def tokenizer_config(tokenizer, config):
    """tokenizer_config.json: which tokens play which part, and the chat template."""
    names = {i: name for name, i in tokenizer.special.items()}
    parts = {"pad_token": "<pad>", "eos_token": "<eos>", "cls_token": "<cls>", "sep_token": "<sep>",
             "mask_token": "<mask>"}
    found = {part: names.get(tokenizer.special_id(role)) for part, role in parts.items()
             if role in tokenizer.roles or role in tokenizer.special}
    settings = {part: name for part, name in found.items() if name is not None}
    if tokenizer.kind.startswith("wordpiece"):
        settings["unk_token"] = "[UNK]"
    if tokenizer.chat is not None:
        settings["chat_template"] = tokenizer.chat.jinja()
    return settings | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.context_length,
                       "clean_up_tokenization_spaces": False}


def tokenizer_json(tokenizer):
    """tokenizer.json, as the `tokenizers` package reads it."""
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": name, **plain} for name, i in sorted(tokenizer.special.items(), key=lambda x: x[1])]
    make = wordpiece_json if tokenizer.kind.startswith("wordpiece") else bpe_json
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
            "post_processor": None, **make(tokenizer)}


def bpe_json(tokenizer):
    """The parts of a byte-level BPE; text is cut by our own regular expression."""
    letters = {byte: character for character, byte in byte_alphabet().items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in tokenizer.ranks}
    vocab = {spelled[token]: i for token, i in tokenizer.ranks.items()} | tokenizer.special
    merges = [[spelled[left], spelled[right]] for left, right in merges_of(tokenizer.ranks)]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "decoder": level,
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                      "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
                      "vocab": vocab, "merges": merges}}


def merges_of(ranks):
    """Yield the two parts of which each longer token is merged in the end, in the order of the ranks."""
    for token, limit in sorted(ranks.items(), key=lambda item: item[1]):
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            rank, i = min((ranks.get(parts[i] + parts[i + 1], limit), i) for i in range(len(parts) - 1))
            if rank >= limit:
                break                                # no merges lead there: it is a whole piece, or never used
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2 and all(part in ranks for part in parts):
            yield parts


def wordpiece_json(tokenizer):
    """The parts of a WordPiece tokenizer, which puts [CLS] and [SEP] around a text."""
    lower = tokenizer.kind == "wordpiece"
    spelled = {token: token[1:].decode() if token[:1] == b" " else "##" + token.decode() for token in tokenizer.ranks}
    around = {role: [name, tokenizer.special[name]] for role, name in (("cls", "[CLS]"), ("sep", "[SEP]"))}
    return {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                           "strip_accents": None, "lowercase": lower},
            "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": {"type": "BertProcessing", **around},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": LONGEST_WORD,
                      "vocab": {spelled[token]: i for token, i in tokenizer.ranks.items()} | tokenizer.special}}
