"""The verb label: prepare what the page shows, serve it until Ctrl-C, then say how far the annotators agree."""

from collections import Counter
from pathlib import Path

from minift.cli.folders import check_out_file
from minift.cli.models import open_kind, pick_device
from minift.cli.rows import find_files, plain_text, read_rows
from minift.cli.sampling import room_to_answer
from minift.core.files import read_bytes
from minift.core.heads import LanguageModel
from minift.core.run import tqdm
from minift.errors import MiniftError
from minift.label.record import Record, sibling
from minift.label.server import Server
from minift.label.tasks import Annotate, Compare, Write
from minift.label.work import Work
from minift.text.batches import chunks
from minift.text.chat import chat_of, encode_prompt
from minift.text.jsonl import write_jsonl
from minift.ways import annotation
from minift.ways.preferences import sample_pairs

# How many disputed items are named.
DISPUTED = 5


def label(options):
    """Serve one of the three modes until Ctrl-C. Rows that --out holds already stay, and new ones are added."""
    mode, prepare = MODES[options.mode]
    check_out_file(options.out, overwrite=True)
    record = Record(options.out, mode.required)
    guidelines = read_guidelines(options.guidelines) if options.guidelines else ""
    work = Work(prepare(options), record, guidelines, names(getattr(options, "annotators", ())))
    begin(work, options)
    server = Server(work, options.port)
    for name in work.annotators or (None,):
        print(f"the page{f' for {name}' if name else ''}: {server.url(name)}")
    print("Ctrl-C ends; the same command goes on later", flush=True)
    wait(server)
    # Wait for a decision that is being written.
    with work.lock:
        report(work)


def wait(server):
    """Serve until Ctrl-C."""
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


# ---- what is shown ----


def compare(options):
    """Compare two answers: those of --pairs, or two sampled from --model for each row of --prompts."""
    if bool(options.pairs) == bool(options.model) or bool(options.model) != bool(options.prompts):
        raise MiniftError("label compare needs either --model DIR with --prompts FILE, or --pairs FILE")
    files = [sampled(options)] if options.model else find_files(options.pairs)
    rows = read_rows(files, ("prompt",))
    items = [Compare.item(row.values, row.where) for row in rows]
    return say_left_out(Compare([item for item in items if item], options.seed), rows)


def sampled(options):
    """The file NAME.pairs.jsonl beside --out, with pairs of answers by the model; sampled unless it is there already.

    The file is kept, so that later sessions show the same answers.
    """
    path = sibling(options.out, "pairs")
    rows = read_rows(find_files(options.prompts), ("prompt",))
    # Go on with the pairs that are there, if they belong to this model and these prompts.
    if path.exists():
        pairs, known = read_rows([path], ("prompt",)), {row.source() for row in rows}
        if any(row.values.get("model") != options.model or row.source() not in known for row in pairs):
            raise MiniftError(
                f"{path} holds answers of another model or to other prompts; go on with them by --pairs "
                f"{path}, or name another --out")
        print(f"{len(pairs)} pairs were sampled before, and are in {path}")
        return path
    # Otherwise sample them: check that each prompt leaves room to answer before the first is sampled.
    model, tokenizer = open_kind(options.model, LanguageModel, "label compare")
    for row in rows:
        room_to_answer(model, prompt_ids(row, tokenizer), options.max_new_tokens, row.where)
    model.to(pick_device(options.device))
    pairs = sample(model, tokenizer, rows, options)
    if not pairs:
        raise MiniftError("the model gave the same answer twice to every prompt; raise --temperature")
    write_jsonl(path, [{**pair, "model": options.model} for pair in pairs])
    print(
        f"{len(pairs)} pairs of answers to {len(rows)} prompts, written to {path}"
        f"{'' if len(pairs) == len(rows) else '; to the others both answers were the same'}")
    return path


def sample(model, tokenizer, rows, options):
    """Sample two answers to each prompt, with a progress bar; each batch has its own random numbers."""
    pairs = []
    with tqdm(total=len(rows), desc="sampling") as bar:
        for i, part in enumerate(chunks(rows, options.batch_size)):
            longest = max((prompt_ids(row, tokenizer) for row in part), key=len)
            room = room_to_answer(model, longest, options.max_new_tokens, "the longest prompt")
            pairs += sample_pairs(
                model, tokenizer, [row.values["prompt"] for row in part], max_new_tokens=room,
                temperature=options.temperature, seed=options.seed * 1_000_003 + i)
            bar.update(len(part))
    return pairs


def prompt_ids(row, tokenizer):
    return encode_prompt(tokenizer, chat_of(row.values["prompt"], row.where))


def annotate(options):
    """Give one of --labels to each text of --items."""
    labels = [text.strip() for text in options.labels.split(",")]
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(labels):
        raise MiniftError(
            f"--labels {options.labels}: expected at least two different names with commas between them, "
            "as in happy,sad")
    rows = read_rows(find_files(options.items), ("text",))
    return say_left_out(Annotate([Annotate.item(row.values, row.where) for row in rows], labels), rows)


def write(options):
    """Write instructions and responses."""
    return Write()


def say_left_out(task, rows):
    """Print how many rows are not items of the task; returns the task."""
    left_out = len(rows) - len(task.items)
    if left_out:
        print(f"{left_out} rows left out: they repeat another, or their two answers are the same")
    return task


def names(given):
    """The annotators' names, checked; MiniftError when one is there twice."""
    alone = Work(Write(), None)
    checked = [alone.checked(name) for name in given]
    if len(set(checked)) < len(checked):
        raise MiniftError(f"--annotators names somebody twice: {', '.join(checked)}")
    return checked


def read_guidelines(path):
    file, = find_files([path])
    return plain_text(f"{file}:1", read_bytes(file))


# ---- what is said at the beginning and at the end ----


def begin(work, options):
    """Say how much there is to do, and how much of it is done."""
    if work.task.items:
        print(f"{len(work.task.items)} items to {options.mode}")
    done = Counter(row.get("annotator", "nobody named") for row, _ in work.record.entries)
    for name, n in sorted(done.items()):
        print(f"in {Path(options.out)} already: {n} by {name}")


def report(work):
    """Print what is in the files now, and the agreement on items that several people decided."""
    for decided, path in work.record.paths.items():
        n = sum(kind == decided for _, kind in work.record.entries)
        if n:
            print(f"{n} {'rows' if decided else 'ties and skips'} in {path}")
    people, ids, ratings = work.ratings()
    if len(people) > 1 and work.record.entries:
        print("\n".join(agreement(people, ids, ratings)))


def agreement(people, ids, ratings):
    """Lines about how far annotators agree. people, ids: the names of the rows and columns of ratings."""
    lines = []
    try:
        lines.append(f"agreement of pairs of annotators: {annotation.percent_agreement(ratings):.1%}")
        disputed = [ids[i] for i, _ in annotation.disputed_items(ratings)]
        if disputed:
            more = ", ..." if len(disputed) > DISPUTED else ""
            lines.append(f"disputed: {len(disputed)} items, {', '.join(disputed[:DISPUTED])}{more}")
        if len(people) == 2:
            lines.append(f"Cohen's kappa: {annotation.cohen_kappa(*ratings):.3f}")
        alpha = annotation.krippendorff_alpha(ratings)
        low, high = annotation.bootstrap(annotation.krippendorff_alpha, ratings)
        lines.append(f"Krippendorff's alpha: {alpha:.3f} (95 %: {low:.3f} to {high:.3f})")
    except MiniftError as error:
        lines.append(f"no {'other ' if lines else ''}measure of agreement: {error}")
    else:
        shares = annotation.agreement_with_others(ratings) if len(people) > 2 else ()
        lines += [
            f"{name} agrees with the others on {share:.1%}"
            for name, share in zip(people, shares) if share is not None]
    return lines


MODES = {"compare": (Compare, compare), "annotate": (Annotate, annotate), "write": (Write, write)}
