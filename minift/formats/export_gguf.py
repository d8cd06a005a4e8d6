"""A decoder of ours as a .gguf file, for llama.cpp and its kin: matrices in 16 bits, norms in 32.

Needs the `gguf` package (requirements-real.txt). llama.cpp has names for the patterns that cut text. A
tokenizer with another pattern gets the nearest name, and its own regular expression is stored beside it for our reader.
Left out: quantizing.
"""

import os
from pathlib import Path

from minift.core.files import remove
from minift.core.heads import LanguageModel
from minift.errors import MiniftError
from minift.formats import byte_level, families, family_config, gguf_file, vocabulary, weights
from minift.formats.chat_template import write_template


def export_gguf(model, tokenizer, path):
    """Write the file. tokenizer: may be None. MiniftError: not a Llama, an adapter that is not merged, a NaN."""
    gguf, path = gguf_file.import_gguf(path), Path(path)
    if type(model) is not LanguageModel or family_config.find_family(model.config) != "llama":
        raise MiniftError("only a decoder built like Llama can be written as a .gguf file")
    # Check all before the file is opened.
    tensors = make_tensors(model)
    weights.check_model(tensors, tokenizer, model.config, "the model to export, in 16 bits")
    # Write beside the target and rename at the end, so that no half of a file is left.
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


def make_tensors(model):
    """llama.cpp's name -> tensor on the CPU."""
    tensors = {}
    for name, tensor in weights.plain_state_dict(model).items():
        tensor = tensor.float().cpu()
        if families.is_permuted(name):
            tensor = families.permute_rows(tensor, model.config.d_head)
        if tensor.dim() == 2:
            tensor = tensor.half()
        tensors[families.their_name(name, "gguf")] = tensor.contiguous()
    if model.config.rope_scaling is not None:
        tensors[gguf_file.FREQUENCIES] = gguf_file.stretch_waves(model.config)
    return tensors


def add_sizes(writer, config):
    """The metadata that gguf_file.read_sizes reads."""
    for field, name in gguf_file.SIZES.items():
        writer.add_uint32(name, getattr(config, field))
    writer.add_uint32(gguf_file.ROTARY_WIDTH, config.d_head)
    writer.add_float32(gguf_file.THETA, config.rope_theta)
    writer.add_float32(gguf_file.NORM_EPS, config.norm_eps)
    # File type 1 means "mostly 16 bits".
    writer.add_file_type(1)


def add_tokenizer(writer, tokenizer, vocab_size):
    """Tokens, merges and roles; ids without a token get a name that nothing produces."""
    if tokenizer.kind.startswith("wordpiece"):
        raise MiniftError("a .gguf file has no WordPiece tokenizer; export a Hugging Face folder")
    # Give each id its token and kind.
    tokens = [f"<unused {i}>" for i in range(vocab_size)]
    kinds = [gguf_file.UNUSED] * vocab_size
    for token, i in tokenizer.ranks.items():
        tokens[i], kinds[i] = byte_level.spell_token(token), gguf_file.NORMAL
    for name, i in tokenizer.special.items():
        tokens[i], kinds[i] = name, gguf_file.CONTROL
    # Name the pattern that cuts text into words, by its known name if it has one.
    known = {pattern: name for name, pattern in vocabulary.PATTERNS.items()}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(known.get(tokenizer.pattern, "gpt-2"))
    if tokenizer.pattern not in known:
        writer.add_string(vocabulary.OWN_PATTERN, tokenizer.pattern)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in byte_level.find_merges(tokenizer.ranks)])
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat is not None:
        writer.add_chat_template(write_template(tokenizer.chat))
