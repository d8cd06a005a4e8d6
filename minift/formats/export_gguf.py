"""A decoder of ours as a .gguf file, for llama.cpp and its kin: matrices in 16 bits, norms in 32.

Needs the `gguf` package (requirements-real.txt). A tokenizer whose way of cutting text llama.cpp does not know is
written under the nearest name, and its own regular expression beside it, which our reader takes. Left out: quantising.
"""

import os
import re
from pathlib import Path

from minift.core.files import remove
from minift.core.heads import LanguageModel
from minift.errors import MiniftError
from minift.formats.export import merges_of
from minift.formats.families import family_of, neighbours, their_name
from minift.formats.gguf_file import FREQUENCIES, stretch_of
from minift.formats.vocabulary import OWN_PATTERN, PATTERNS, byte_alphabet
from minift.formats.weights import check_finite, check_vocabulary, plain_state_dict

NORMAL, CONTROL, UNUSED = 1, 3, 5           # ggml's kinds of tokens


def export_gguf(model, tokenizer, path):
    """Write the file. tokenizer: may be None. MiniftError: not a Llama, an adapter that is not merged, a NaN."""
    try:
        import gguf
    except ImportError as error:
        raise MiniftError("a .gguf file needs the package gguf: pip install -r requirements-real.txt") from error
    path = Path(path)
    if type(model) is not LanguageModel or family_of(model.config) != "llama":
        raise MiniftError("only a decoder that is built like Llama can be written as a .gguf file")
    check_vocabulary(tokenizer, model.config, "the model to export")
    tensors = gguf_tensors(model)
    check_finite(tensors, "the model to export, in 16 bits")
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        writer = gguf.GGUFWriter(temporary, "llama")
        add_sizes(writer, model.config)
        if tokenizer is not None:
            add_tokenizer(writer, tokenizer, model.config.vocab_size)
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.replace(temporary, path)
    except OSError as error:
        remove(temporary)
        raise MiniftError(f"cannot write {path}: {error.strerror}; choose another place") from error


def gguf_tensors(model):
    """llama.cpp's name -> tensor on the CPU."""
    tensors = {}
    for name, tensor in plain_state_dict(model).items():
        tensor = tensor.float().cpu()
        if re.search(r"\.[qk]_proj\.", name):
            tensor = neighbours(tensor, model.config.d_head)
        tensors[their_name(name, "gguf")] = tensor.half() if tensor.dim() == 2 else tensor
    if model.config.rope_scaling is not None:
        tensors[FREQUENCIES] = stretch_of(model.config.rope_scaling, model.config.d_head, model.config.rope_theta)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def add_sizes(writer, config):
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_block_count(config.n_layer)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.n_kv_head)
    writer.add_rope_dimension_count(config.d_head)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_file_type(1)                                  # mostly 16 bits


def add_tokenizer(writer, tokenizer, vocab_size):
    """Tokens, merges and roles; ids without a token get a name that nothing produces."""
    if tokenizer.kind.startswith("wordpiece"):
        raise MiniftError("a WordPiece tokenizer does not go with a decoder in a .gguf file")
    letters = {byte: character for character, byte in byte_alphabet().items()}
    spelled = {token: "".join(letters[byte] for byte in token) for token in tokenizer.ranks}
    tokens, kinds = [f"<unused {i}>" for i in range(vocab_size)], [UNUSED] * vocab_size
    for token, i in tokenizer.ranks.items():
        tokens[i], kinds[i] = spelled[token], NORMAL
    for name, i in tokenizer.special.items():
        tokens[i], kinds[i] = name, CONTROL
    known = {pattern: name for name, pattern in PATTERNS.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(known.get(tokenizer.pattern, "gpt-2"))
    if tokenizer.pattern not in known:
        writer.add_string(OWN_PATTERN, tokenizer.pattern)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([f"{spelled[left]} {spelled[right]}" for left, right in merges_of(tokenizer.ranks)])
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat is not None:
        writer.add_chat_template(tokenizer.chat.jinja())
