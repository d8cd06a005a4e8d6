"""The verbs of the command line: which function does the work, what it is for, and an example that works as it stands.

The examples run in the root of the repository.
"""

from minift.cli import encoder_options, label_options
from minift.cli import options as add

COMMAND = "python -m minift"
BASE, ENCODER, SAMPLES = "--model data/base", "--model data/encoder", "data/samples"

# verb -> ("module.function" in minift.cli, one line of help, examples)
VERBS = {
    "tour": ("", "The whole journey: one model goes through every kind of fine-tuning, on the embedded world.",
             ["tour --quick --out runs/quick"]),
    "pretrain": ("training.pretrain", 'Continued pre-training on plain text: .txt, .md, or JSONL rows {"text"}.',
                 [f"pretrain {BASE} --data {SAMPLES}/text.jsonl --out runs/pretrain"]),
    "mlm": ("encoder.mlm", 'Masked training of an encoder on plain text: .txt, .md, or JSONL rows {"text"}.',
            [f"mlm {ENCODER} --data {SAMPLES}/text.jsonl --out runs/mlm"]),
    "classify": ("encoder.classify", 'A classifier on an encoder, from JSONL rows {"text", "label"}; and its use.',
                 [f"classify {ENCODER} --data {SAMPLES}/labels.jsonl --out runs/labels",
                  f"classify --model runs/labels --predict {SAMPLES}/unlabelled.jsonl --out runs/labelled.jsonl"]),
    "sft": ("training.sft", 'Supervised fine-tuning on JSONL rows {"messages"} or {"prompt", "completion"}.',
            [f"sft {BASE} --data {SAMPLES}/messages.jsonl --out runs/sft"]),
    "reward": ("training.reward", 'A reward model, from JSONL rows {"prompt", "chosen", "rejected"}.',
               [f"reward {BASE} --data {SAMPLES}/pairs.jsonl --out runs/reward"]),
    "ppo": ("rl.ppo", 'PPO on JSONL rows {"prompt"}, with a reward model or your own function as the judge.',
            [f"ppo {BASE} --data {SAMPLES}/prompts.jsonl --reward-fn {SAMPLES}/reward_fn.py:score --out runs/ppo"]),
    "dpo": ("training.dpo", 'Direct preference optimization on JSONL rows {"prompt", "chosen", "rejected"}.',
            [f"dpo {BASE} --data {SAMPLES}/pairs.jsonl --out runs/dpo"]),
    "check-data": ("check.check_data", "What files will become: rows, tokens, what is learned, time, memory.",
                   [f"check-data {BASE} --data {SAMPLES}/messages.jsonl"]),
    "generate": ("use.generate", 'Answer a prompt, or every JSONL row {"prompt"}; a {"text"} is continued as it is.',
                 [f'generate {BASE} --raw --prompt "One sunny morning"',
                  f"generate {BASE} --data {SAMPLES}/prompts.jsonl --out runs/answers.jsonl"]),
    "evaluate": ("evaluate.evaluate", "Perplexity of texts, exact match of answers, accuracy on pairs and labels.",
                 [f"evaluate {BASE} --data {SAMPLES}/completions.jsonl",
                  f"evaluate --leave-one-cluster-out {BASE} --data {SAMPLES}/tasks.jsonl --steps 5 --out runs/folds"]),
    "chat": ("use.chat", "Talk with a model; its words appear as they come. /quit ends it.", [f"chat {BASE}"]),
    "templates": ("templates.templates", "Labelled rows become chats for sft, through a file of templates.",
                  [f"templates --data {SAMPLES}/labels.jsonl --templates {SAMPLES}/templates.json "
                   "--out runs/chats.jsonl"]),
    "label": ("label.label", "A page on which people compare answers, label texts, or write instructions.",
              label_options.EXAMPLES),
    "merge": ("use.merge", "Write an adapter and its base as one plain model.",
              [f"sft {BASE} --data {SAMPLES}/messages.jsonl --lora 8 --out runs/adapter",
               "merge --model runs/adapter --out runs/merged"]),
    "export": ("use.export", "Write a model as Hugging Face transformers reads it, or as a .gguf file.",
               [f"export {BASE} --out runs/exported"]),
    "lesson": ("lesson.lesson", "Open a lesson of the course in Jupyter, or list the lessons.", ["lesson --list"]),
}


# ---- the options of each verb ----


def tour(sub, verb):
    sub.add_argument("--out", metavar="DIR", default="runs/tour", help="where everything goes (default runs/tour)")
    add.option(sub, "--seed", "N", add.WHOLE, 0, "of all random numbers")
    sub.add_argument("--seeds", metavar="N", type=add.WHOLE, nargs="+", help="several tours, with mean and spread")
    sub.add_argument("--stages", metavar="NAME", nargs="+", help="only these stages, upon what --out holds already")
    add.flag(sub, "--quick", "a rehearsal: every stage runs, none learns much")
    add.flag(sub, "--resume", "keep the stages that are finished in --out")


def pretrain(sub, verb):
    add.model(sub, required=False)
    add.data(sub, 'text files; patterns such as "plays/*.md" are expanded', required=False)
    add.files(sub)
    sub.add_argument("--recipe", metavar="NAME", choices=("base",), help='"base" makes data/base anew, from nothing')
    sub.add_argument("--replay", metavar="FILE", nargs="+", help="old text to mix in against forgetting")
    add.option(sub, "--replay-share", "X", add.number(float, 0, most=0.99), 0.3, "its share of the rows")
    add.training(sub, verb)


def sft(sub, verb):
    add.model(sub)
    add.data(sub)
    add.files(sub)
    add.training(sub, verb)


def dpo(sub, verb):
    add.model(sub, "a model folder or an adapter folder; it is also the reference")
    add.data(sub)
    add.files(sub)
    add.option(sub, "--beta", "X", add.POSITIVE, 0.1, "price of leaving the reference")
    add.option(sub, "--label-smoothing", "X", add.number(float, 0, most=0.49), 0.0, "chance that a label is wrong")
    add.training(sub, verb)


def ppo(sub, verb):
    """The judge, the size of a rollout, and what of PPO one may want to set."""
    add.model(sub, "a model folder or an adapter folder; it is also the reference")
    add.data(sub, 'JSONL; {"prompt"} goes through the chat template, {"text"} does not')
    add.files(sub)
    sub.add_argument("--reward-model", metavar="DIR", help="a folder that the verb reward wrote")
    sub.add_argument("--reward-fn", metavar="FILE.py:NAME", help="a function of (prompts, responses), returns floats")
    add.rate(sub, verb)
    add.option(sub, "--iterations", "N", add.COUNT, 20, "rollouts, each with its updates")
    add.option(sub, "--batch-size", "N", add.COUNT, 32, "answers in a rollout")
    add.sized(sub, "--minibatch-size", "answers in an optimizer step")
    add.option(sub, "--epochs", "N", add.COUNT, 2, "passes over each rollout")
    add.option(sub, "--beta", "X", add.NOT_NEGATIVE, 0.05, "price of a nat of KL to the reference")
    add.option(sub, "--target-kl", "X", add.POSITIVE, None, "steer beta to this KL, in nats an answer")
    add.option(sub, "--missing-eos-penalty", "X", add.NOT_NEGATIVE, 1.0, "for an answer that was cut")
    add.option(sub, "--max-new-tokens", "N", add.COUNT, 96, "tokens of an answer at most")
    add.option(sub, "--temperature", "X", add.POSITIVE, 1.0, "of sampling and update")
    add.running(sub)


def check_data(sub, verb):
    add.model(sub, "the model that will be trained: its tokenizer, context, speed")
    add.data(sub, "JSONL, .txt or .md files, or patterns")
    add.context(sub)
    add.sized(sub, "--batch-size", "rows in a batch, for the estimates")
    add.option(sub, "--show", "N", add.WHOLE, 2, "rows of each form to show, coloured by what is learned")
    add.machine(sub, seed=False)


def generate(sub, verb):
    add.model(sub)
    sub.add_argument("--prompt", metavar="TEXT", help="one prompt; the answer is printed")
    add.data(sub, 'JSONL rows {"prompt"}; each gets a "completion"', required=False)
    sub.add_argument("--out", metavar="FILE", help="the JSONL file for the rows (default: they are printed)")
    add.flag(sub, "--raw", "no chat template: go on from the prompt as it is")
    add.option(sub, "--batch-size", "N", add.COUNT, 32, "prompts at a time")
    add.sampling(sub)
    add.machine(sub)
    add.overwrite(sub)


def evaluate(sub, verb):
    add.model(sub, "a language model, a reward model or a classifier; or an adapter folder")
    add.data(sub, "texts, answers, pairs, labels; JSONL, .txt or .md", required=False)
    add.context(sub)
    sub.add_argument("--reference", metavar="DIR", help="for pairs: what --model was trained from (implicit reward)")
    add.option(sub, "--show", "N", add.WHOLE, 0, "answers to show beside the expected ones")
    add.option(sub, "--batch-size", "N", add.COUNT, 32, "rows at a time")
    sub.add_argument("--out", metavar="PATH", help="a JSON file for the numbers; for the folds, a folder")
    add.length(sub)
    add.machine(sub, seed=False)
    add.overwrite(sub)
    add.folds(sub)


def chat(sub, verb):
    add.model(sub)
    sub.add_argument("--system", metavar="TEXT", help="a system turn to begin with")
    add.sampling(sub)
    add.machine(sub)


def templates(sub, verb):
    add.data(sub, 'JSONL rows with the templates\' fields; of "label annotate", the rows of all annotators')
    sub.add_argument("--templates", metavar="FILE", required=True,
                     help='JSON: {task: {"cluster", "templates": [{"instruction", "response"}, ...]}}')
    sub.add_argument("--split", metavar="NAME", choices=("seen", "held-out"), default="seen",
                     help="which templates: seen, or held-out, to test on (default seen)")
    add.flag(sub, "--no-inverted", "leave out templates that ask for the text and give the label")
    sub.add_argument("--out", metavar="FILE", required=True, help="the JSONL file for the chats")
    add.option(sub, "--seed", "N", add.WHOLE, 0, "of which template a row gets")
    add.overwrite(sub)


def merge(sub, verb):
    add.model(sub, "the adapter folder")
    sub.add_argument("--out", metavar="DIR", required=True, help="a new folder for the plain model")
    add.overwrite(sub)


def export(sub, verb):
    add.model(sub)
    sub.add_argument("--out", metavar="DIR", required=True, help="a new folder for the exported model")
    add.flag(sub, "--gguf", "one .gguf file in 16 bits, for llama.cpp, instead (decoders only)")
    add.overwrite(sub)


def lesson(sub, verb):
    sub.add_argument("number", type=add.WHOLE, nargs="?", help="of the lesson")
    sub.add_argument("jupyter", nargs="*", metavar="-- OPTION", help="for Jupyter, such as -- --no-browser")
    add.flag(sub, "--list", "the lessons and their numbers")


ADD = {"tour": tour, "pretrain": pretrain, "mlm": encoder_options.mlm, "classify": encoder_options.classify, "sft": sft,
       "reward": sft, "ppo": ppo, "dpo": dpo, "check-data": check_data, "generate": generate, "evaluate": evaluate,
       "chat": chat, "templates": templates, "label": label_options.label, "merge": merge, "export": export,
       "lesson": lesson}


# ---- reading a command line ----


def parse(argv):
    """The options of a command line. Raises MiniftError for a wrong one; --help prints and exits, as argparse does."""
    parser = add.Parser(prog=COMMAND, description="minift: fine-tuning from scratch, in pure PyTorch.",
                        allow_abbrev=False, formatter_class=add.layout,
                        epilog=f"{COMMAND} VERB --help says more, with an example.")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, (job, summary, examples) in VERBS.items():
        lines = "\n".join(f"  {COMMAND} {example}" for example in examples)
        sub = verbs.add_parser(verb, help=summary, description=summary, usage=f"{COMMAND} {verb} [options]",
                               allow_abbrev=False, formatter_class=add.layout, epilog=f"example:\n{lines}")
        sub.set_defaults(job=job)
        ADD[verb](sub, verb)
    options = parser.parse_args(argv)
    options.argv = list(argv)
    return options

