"""Files that others read or write; only this folder knows the names that other libraries use. In reading order:

weights         a model's weights as files name them, and the checks that all formats share
settings        the errors of files: settings that minift does not have, and damage
checkpoint      our own folder: save_model and load_model, which opens all others, too
families        the names of weights in GPT-2, Llama and BERT, and how each lays out its matrices
family_config   the config.json of these families, read and written with one table
byte_level      how files of byte-level BPE write tokens and merges
vocabulary      the tokenizers of published models, read as a Tokenizer
chat_template   their chat templates (Jinja programs), read as a ChatFormat, and written
gguf_file       a .gguf file of llama.cpp: its header, sizes and blocks
pretrained      load_pretrained: a folder, a .gguf file, a name on the hub
export          export_pretrained: a folder for Hugging Face transformers
export_gguf     export_gguf: a file for llama.cpp
adapter         save_adapter and load_adapter: LoRA in PEFT's format
adapter_contents  which tensors are in an adapter's file, and whether they fit a model
adapter_file    how the file is written and read, under which names
"""
