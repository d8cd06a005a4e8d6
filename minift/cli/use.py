"""The verbs that use a model: generate, chat, merge, export."""

import json
from pathlib import Path

import torch

from minift.cli.data import Row, find_files, read_rows
from minift.cli.folders import check_out, check_out_file, clear
from minift.cli.models import is_adapter, open_kind, open_model, pick_device, plain_copy
from minift.cli.sampling import LONGEST_ANSWER, room_to_answer, stream_text, write_answers
from minift.core.heads import LanguageModel
from minift.errors import MiniftError
from minift.formats.checkpoint import save_model
from minift.formats.export import export_pretrained
from minift.formats.export_gguf import export_gguf
from minift.text.chat import chat_of, encode_chat, encode_prompt
from minift.text.jsonl import write_jsonl


def generate(options):
    """Answer one prompt, or every row of JSONL files; rows keep what they have and get a "completion"."""
    if (options.prompt is None) == (options.data is None):
        raise MiniftError('generate needs one of --prompt "TEXT" and --data FILE.jsonl')
    if options.out:
        check_out_file(options.out, options.overwrite)
    model, tokenizer = open_kind(options.model, LanguageModel, "generate")
    rows = [Row("--prompt", "prompt", {"prompt": options.prompt})]
    if options.data:
        rows = read_rows(find_files(options.data), ("prompt", "completion", "pair", "text"))
    prompts = [prompt_ids(row, tokenizer, options.raw) for row in rows]
    for row, ids in zip(rows, prompts):
        room_to_answer(model, ids, options.max_new_tokens, row.where)
    model.to(pick_device(options.device))
    answers = write_answers(model, tokenizer, prompts, max_new_tokens=options.max_new_tokens,
                            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
                            seed=options.seed, batch_size=options.batch_size)
    texts = [tokenizer.decode(answer, skip_special=True) for answer in answers]
    written = [completed(row.values, text) for row, text in zip(rows, texts)]
    if options.out:
        write_jsonl(options.out, written)
        print(f"{len(written)} answers written to {options.out}")
    elif options.data:
        print("\n".join(json.dumps(values, ensure_ascii=False) for values in written))
    else:
        print(texts[0])


def completed(values, text):
    """A row with the model's answer; an answer that it came with becomes its reference."""
    old = {"reference": values["completion"]} if "completion" in values else {}
    return {**values, **old, "completion": text}


def prompt_ids(row, tokenizer, raw):
    """A row's prompt as ids: through the chat template, unless it is a {"text"} or --raw was given."""
    if row.form == "text":
        return tokenizer.encode(row.values["text"])
    prompt = row.values["prompt"]
    if not raw:
        return encode_prompt(tokenizer, chat_of(prompt, row.where))
    if not isinstance(prompt, str):
        raise MiniftError(f"{row.where}: with --raw a prompt must be a string, since messages need the chat template")
    return tokenizer.encode(prompt)


def chat(options):
    """Talk with a model until /quit or the end of the input; its words appear as they come."""
    model, tokenizer = open_kind(options.model, LanguageModel, "chat")
    device = pick_device(options.device)
    model.to(device)
    generator = torch.Generator(device).manual_seed(options.seed)
    messages = [{"role": "system", "content": options.system}] if options.system else []
    print("/quit or the end of the input ends the chat")
    while (text := ask("you: ")) is not None:
        said = [*messages, {"role": "user", "content": text}]
        said, ids, room = fit_history(said, model, tokenizer, options.max_new_tokens)
        if room == 0:
            print("that leaves no room to answer in the model's context; say it in fewer words")
            continue
        print("model: ", end="", flush=True)
        reply = ""
        for piece in stream_text(model, tokenizer, ids, max_new_tokens=room, temperature=options.temperature,
                                 top_k=options.top_k, top_p=options.top_p, generator=generator):
            print(piece, end="", flush=True)
            reply += piece
        print()
        # Silence cannot be put into the history.
        if reply.strip():
            messages = [*said, {"role": "assistant", "content": reply}]


def ask(label):
    """A line of input; None at /quit and at the end of the input. Bytes that are no text become question marks."""
    try:
        text = input(label)
    except EOFError:
        print()
        return None
    return None if text.strip() == "/quit" else text.encode("utf-8", "replace").decode("utf-8")


def fit_history(messages, model, tokenizer, max_new_tokens):
    """(messages, ids, room): the oldest exchanges are forgotten until the answer has room; the system's turn stays.

    room: tokens that the answer may have, 0 when not even the last turn alone fits.
    """
    context, wanted = model.config.context_length, max_new_tokens or LONGEST_ANSWER
    first = int(messages[0]["role"] == "system")
    while True:
        ids, _ = encode_chat(tokenizer, messages, add_generation_prompt=True)
        if len(ids) + min(wanted, context // 2) <= context or len(messages) == first + 1:
            return messages, ids, max(0, min(wanted, context - len(ids)))
        messages = messages[:first] + messages[first + 2:]


def merge(options):
    """Write an adapter's base with the adapter merged into it: a plain model folder, as fast as the base."""
    if not is_adapter(options.model):
        raise MiniftError(f"{options.model} has no adapter_config.json, so it is no adapter; there is nothing to merge")
    model, tokenizer = open_model(options.model)
    check_out(options.out, overwrite=options.overwrite, sources=[options.model])
    clear(options.out)
    save_model(plain_copy(model), tokenizer, options.out)
    print(f"the merged model is in {options.out}")


def export(options):
    """Write a model, any adapter merged in, as a folder for Hugging Face transformers, or with --gguf for llama.cpp."""
    check_out(options.out, overwrite=options.overwrite, sources=[options.model])
    model, tokenizer = open_model(options.model)
    model = plain_copy(model) if is_adapter(options.model) else model
    clear(options.out)
    if options.gguf:
        export_gguf(model, tokenizer, Path(options.out) / "model-f16.gguf")
    else:
        export_pretrained(model, tokenizer, options.out)
    print(f"the exported model is in {options.out}")
