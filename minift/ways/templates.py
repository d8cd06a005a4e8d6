"""Instructions from labelled examples: an example is a set of fields, a template is text with {slots} for them.

Wei et al. 2021, "Finetuned Language Models Are Zero-Shot Learners", section 2.1: many templates for each task. A few
are inverted: they give the label and ask for the example ("write a story that ends sadly"). Templates are split into
seen and held-out ones, to distinguish a learned task from a learned wording. Left out: conditions and loops in a
template, several turns, exemplars in the prompt.
"""

import random
import re

from minift.core.files import read_json
from minift.errors import MiniftError
from minift.text.chat import check_messages

SPLITS = ("seen", "held-out")
# Values of the keys that a template may leave out.
DEFAULTS = {"inverted": False, "split": "seen"}
# Matches a doubled brace, a slot, or a single brace.
MARK = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
SLOT = re.compile(r"\w+(?:[ -]\w+)*")


def fill(text, fields, where="the template"):
    """The template's text with {slot} replaced by fields["slot"] and {{ }} by braces, in one pass over the template.

    fields: name -> str. A value is data: it is put in as it is, and braces or special tokens in it mean nothing. Raises
    MiniftError, which starts with `where`, for a slot that has no field.
    """
    def value(mark):
        if mark[0] in ("{{", "}}"):
            return mark[0][0]
        slot = slot_name(mark, where)
        if slot not in fields:
            raise MiniftError(
                f"{where}: no field for the slot {{{slot}}} in {text!r:.80}; the fields there are: "
                f"{', '.join(map(str, fields)) or 'none'}")
        return fields[slot]

    return MARK.sub(value, text)


def slots(text, where="the template"):
    """The names of a template's slots, in order; MiniftError for a single brace or a name that is not allowed."""
    return [slot_name(mark, where) for mark in MARK.finditer(text) if mark[0] not in ("{{", "}}")]


def slot_name(mark, where):
    if mark[1] is None:
        raise MiniftError(
            f"{where}: the brace {mark[0]} at character {mark.start()} stands alone; write {mark[0] * 2} "
            "for a brace, {name} for a slot")
    if not SLOT.fullmatch(mark[1]):
        raise MiniftError(
            f"{where}: {mark[0]} is no slot; a slot's name has letters, digits and _, and {{{{ and }}}} "
            "stand for braces")
    return mark[1]


# ---- files of templates ----


def read_templates(path):
    """A JSON file of templates, checked: task -> {"cluster": str, "templates": [template, ...]}.

    A template has the keys instruction, response (texts with slots), inverted (default false) and split ("seen" or
    "held-out", default seen). Its number, from 1, identifies it. Raises MiniftError that names file, task and template
    for unknown or missing keys, empty or repeated texts, bad slots, and a task without a seen template.
    """
    tasks = read_json(path)
    if not isinstance(tasks, dict) or not tasks:
        raise MiniftError(
            f'{path}: expected an object {{task: {{"cluster": ..., "templates": [...]}}}}, at least one '
            f"task; got {tasks!r:.80}")
    return {task: check_task(entry, f"{path}, task {task!r}") for task, entry in tasks.items()}


def check_task(entry, where):
    """The task's entry with every default filled in, or MiniftError."""
    check_keys(entry, ("cluster", "templates"), (), where)
    if not isinstance(entry["cluster"], str) or not entry["cluster"].strip():
        raise MiniftError(f"{where}: the cluster must be a name; got {entry['cluster']!r:.80}")
    if not isinstance(entry["templates"], list):
        raise MiniftError(f"{where}: templates must be a list; got {entry['templates']!r:.80}")
    templates, texts = [], {}
    for number, template in enumerate(entry["templates"], start=1):
        templates.append(check_template(template, f"{where}, template {number}"))
        text = " ".join(templates[-1]["instruction"].lower().split())
        if text in texts:
            raise MiniftError(
                f"{where}, template {number}: the instruction is that of template {texts[text]}; reword "
                "it, or drop it")
        texts[text] = number
    if not any(template["split"] == "seen" for template in templates):
        raise MiniftError(f'{where}: no template of the split "seen", so that there is nothing to train on; add one')
    return {"cluster": entry["cluster"], "templates": templates}


def check_template(template, where):
    """One template with its defaults, or MiniftError."""
    check_keys(template, ("instruction", "response"), tuple(DEFAULTS), where)
    template = {**DEFAULTS, **template}
    for key in ("instruction", "response"):
        if not isinstance(template[key], str) or not template[key].strip():
            raise MiniftError(f"{where}: the {key} must be a text that is not empty; got {template[key]!r:.80}")
    if not slots(template["instruction"], where) + slots(template["response"], where):
        raise MiniftError(
            f"{where}: no slot in instruction or response, so that every example would read alike; "
            "write {name} where the field called name belongs")
    if not isinstance(template["inverted"], bool):
        raise MiniftError(f"{where}: inverted must be true or false; got {template['inverted']!r:.80}")
    check_split(template["split"], where)
    return template


def check_split(split, where):
    if split not in SPLITS:
        raise MiniftError(f"{where}: no split {split!r:.80} of templates; there are {' and '.join(SPLITS)}")


def check_keys(entry, required, optional, where):
    """MiniftError unless entry is an object with all required keys, and with no others except the optional ones."""
    if not isinstance(entry, dict):
        raise MiniftError(f"{where}: expected an object with the keys {', '.join(required)}; got {entry!r:.80}")
    missing = [key for key in required if key not in entry]
    unknown = [key for key in entry if key not in required + optional]
    if missing or unknown:
        wrong = f"the key {missing[0]!r} is missing" if missing else f"unknown key {unknown[0]!r}"
        raise MiniftError(f"{where}: {wrong}; expected {', '.join(required + optional)}")


# ---- examples ----


def instantiate(rows, templates, *, split="seen", seed=0, source="template", inverted=True, name="row"):
    """A chat of each labelled row, by a template of its task that is drawn at random from `seed`.

    rows: {"task", "fields": {name: value}, "id"}, or rows whose own strings and numbers are the fields. A row
    without "task" has the only task of templates (MiniftError if there are more); one without "id" gets the id
    TASK-NUMBER. templates: what read_templates returns. split: which templates to use. inverted: False leaves the
    inverted ones out.
    Returns dicts {"messages": [user, assistant], "task", "cluster", "source", "id", "template": its number,
    "inverted"}. Raises MiniftError, which begins with `name` and the row's number.
    """
    check_split(split, "instantiate")
    rng = random.Random(f"templates/{split}/{seed}")
    chats = []
    for number, row in enumerate(rows, start=1):
        where = f"{name} {number}"
        task = task_of(row, templates, where)
        choices = [
            i for i, template in enumerate(templates[task]["templates"], start=1)
            if template["split"] == split and (inverted or not template["inverted"])]
        if not choices:
            raise MiniftError(
                f"{where}: the task {task!r} has no {split} template"
                f"{'' if inverted else ' that is not inverted'}; add one to the file")
        chosen = rng.choice(choices)
        template = templates[task]["templates"][chosen - 1]
        messages = fill_chat(template, fields_of(row), f"{where}, template {chosen} of the task {task!r}")
        chats.append(
            {"messages": messages, "task": task, "cluster": templates[task]["cluster"], "source": source,
             "id": row.get("id", f"{task}-{number}"), "template": chosen, "inverted": template["inverted"]})
    return chats


def fill_chat(template, fields, where):
    """[user, assistant]; MiniftError when a field is missing or nothing is left to answer."""
    messages = [
        {"role": role, "content": fill(template[key], fields, where)}
        for role, key in (("user", "instruction"), ("assistant", "response"))]
    check_messages(messages, where, need_assistant=True)
    return messages


def task_of(row, templates, where):
    task = row.get("task")
    if "task" not in row and len(templates) == 1:
        task, = templates
    if task is None:
        raise MiniftError(
            f'{where}: the key "task" is missing; it says which of these templates to use: '
            f"{', '.join(templates)}")
    if not isinstance(task, str) or task not in templates:
        raise MiniftError(f"{where}: no templates for the task {task!r:.80}; there are {', '.join(templates)}")
    return task


def fields_of(row):
    """name -> text: the strings and numbers under "fields", or else of the row itself. Other values are left out."""
    fields = row["fields"] if isinstance(row.get("fields"), dict) else row
    return {
        name: str(value) for name, value in fields.items()
        if isinstance(value, str | int | float) and not isinstance(value, bool)}
