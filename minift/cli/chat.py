"""Talk with a model; its words appear as they come. /quit ends it."""

from minift.cli import options as add

EXAMPLES = ["chat --model data/base"]


def add_options(parser):
    add.model(parser)
    parser.add_argument("--system", metavar="TEXT", help="a system turn to begin with")
    add.sampling(parser)
    add.machine(parser)


def run(options):
    """Talk with a model until /quit or the end of the input; its words appear as they come."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.cli.models import open_kind, pick_device
    from minift.cli.sampling import stream_text
    from minift.core.heads import LanguageModel
    from minift.text.answers import make_generator
    model, tokenizer = open_kind(options.model, LanguageModel, "chat")
    model.to(pick_device(options.device))
    generator = make_generator(model, options.seed)
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
        for piece in stream_text(
                model, tokenizer, ids, max_new_tokens=room, temperature=options.temperature,
                top_k=options.top_k, top_p=options.top_p, generator=generator):
            print(piece, end="", flush=True)
            reply += piece
        print()
        # An empty answer cannot be put into the history.
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
    """(messages, ids, room): drop the oldest exchanges until the answer has room; the system turn stays.

    room: tokens that the answer may have, 0 when not even the last turn alone fits.
    """
    from minift.cli.sampling import LONGEST_ANSWER
    from minift.text.chat import encode_chat
    context, wanted = model.config.context_length, max_new_tokens or LONGEST_ANSWER
    first = int(messages[0]["role"] == "system")
    while True:
        ids, _ = encode_chat(tokenizer, messages, add_generation_prompt=True)
        if len(ids) + min(wanted, context // 2) <= context or len(messages) == first + 1:
            return messages, ids, max(0, min(wanted, context - len(ids)))
        messages = messages[:first] + messages[first + 2:]
