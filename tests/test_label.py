"""The labelling page without a browser: what is written, what is refused, what a kill leaves. tests/browser clicks."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from test_jobs import save_tiny, write

from minift.__main__ import main
from minift.cli import label_page as label
from minift.cli.rows import read_rows
from minift.errors import MiniftError
from minift.label import record, server, tasks, work
from minift.text.chat import check_messages
from minift.text.jsonl import read_jsonl, write_jsonl

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "minift" / "label" / "page.html").read_text(encoding="utf-8")
PAIRS = [{"prompt": f"Story {i}?", "answers": [f"good {i}", f"bad {i}"]} for i in range(24)]
TEXTS = [{"id": f"t{i}", "text": f"text {i}"} for i in range(8)]
CHAT = [{"role": "user", "content": "Where is the fox?"}, {"role": "assistant", "content": "At the mill."}]


def comparing(path, pairs=PAIRS, seed=0, Work=work.Work):
    task = tasks.Compare([tasks.Compare.item(row, "row") for row in pairs], seed)
    return Work(task, record.Record(path, task.required))


def annotating(path, annotators=(), labels=("a", "b"), texts=TEXTS):
    task = tasks.Annotate([tasks.Annotate.item(row, "row") for row in texts], labels)
    return work.Work(task, record.Record(path, task.required), annotators=annotators)


def writing(path):
    return work.Work(tasks.Write(), record.Record(path, tasks.Write.required))


def rows_of(path):
    """The rows of a file as they stand on the disk, by Python's own reader; none without a file."""
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def undecided(path):
    return rows_of(path.with_name(f"{path.stem}.undecided.jsonl"))


@contextmanager
def serving(some_work, Server=server.Server):
    """A server of the work, in a thread of its own."""
    page = Server(some_work)
    thread = threading.Thread(target=page.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield page
    finally:
        page.shutdown()
        page.server_close()
        thread.join()


def ask(page, method, path, body=None, leave_out=(), **headers):
    """(status, answer): one request with the right headers, but for those of `headers` and `leave_out`."""
    port = page if isinstance(page, int) else page.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"Host": f"127.0.0.1:{port}", "Content-Length": None if data is None else str(len(data))}
    sent["X-Token"] = None if isinstance(page, int) else page.token
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in sent.items():
        if value is not None and name not in leave_out:
            connection.putheader(name, value)
    connection.endheaders(data)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    is_json = "json" in reply.headers["Content-Type"] and text
    return reply.status, {"headers": reply.headers, **(json.loads(text) if is_json else {"text": text})}


def decide(page, name, value, seconds=1.5):
    """Answer the item that the page shows a person; returns (item, next state)."""
    item = ask(page, "POST", "/state", {"annotator": name})[1]["item"]
    body = {"annotator": name, "identity": item and item["id"], "value": value, "seconds": seconds}
    status, state = ask(page, "POST", "/answer", body)
    assert status == 200, state
    return item, state


# ---- what is written ----


def test_a_choice_is_written_as_it_was_seen(tmp_path, Compare=tasks.Compare):
    """What stood left and was chosen is "chosen", and "order" says where it stood; ties and skips are kept apart."""
    out = tmp_path / "prefs.jsonl"
    items = [Compare.item(row, "row") for row in PAIRS]
    with serving(work.Work(Compare(items), record.Record(out, Compare.required))) as page:
        seen = [decide(page, "Ada", value)[0] for value in ["left", "right", "tie", None] * 6]
        assert ask(page, "POST", "/state", {"annotator": "Ada"})[1] | {"headers": 0} == {
            "annotator": "Ada", "done": 24, "total": 24, "item": None, "last": seen[-1]["id"], "headers": 0}
    assert [item["messages"] for item in seen] == [[{"role": "user", "content": row["prompt"]}] for row in PAIRS]
    rows = rows_of(out)
    for i, row in enumerate(rows):
        item, side = seen[i // 2 * 4 + i % 2], i % 2                # 0: left was chosen
        assert [row["chosen"], row["rejected"]] == item["answers"][::-1 if side else 1] and row["id"] == item["id"]
        assert row["order"] == [["chosen", "rejected"], ["rejected", "chosen"]][side]
        assert row["annotator"] == "Ada" and row["seconds"] == 1.5 and row["prompt"] in item["messages"][0]["content"]
    assert [(row["verdict"], row["answers"]) for row in undecided(out)] == [
        ("tie" if i % 4 == 2 else "skip", item["answers"]) for i, item in enumerate(seen) if i % 4 > 1]
    assert len(rows) == len(undecided(out)) == 12 and len(read_rows([out], ("pair",))) == 12


def test_sides_are_drawn_for_each_item_and_person(Compare=tasks.Compare):
    """Each answer stands on the left about half of the time, independently for two people, and the same when asked
    again."""
    items = [Compare.item({"prompt": str(i), "answers": ["a", "b"]}, "row") for i in range(2000)]
    task, again = Compare(items), Compare(items)
    sides = {name: [task.show(item, name)["answers"] for item in items] for name in ("Ada", "Ben")}
    assert sides["Ada"] == [again.show(item, "Ada")["answers"] for item in items]
    counts = Counter(zip(map(tuple, sides["Ada"]), map(tuple, sides["Ben"])))
    assert len(counts) == 4 and all(abs(n - 500) < 5 * (2000 * 3 / 16) ** 0.5 for n in counts.values())


def test_chosen_pairs_train(tmp_path, capsys):
    """The file of choices is read by reward and dpo as it stands, beside its ties."""
    out = tmp_path / "prefs.jsonl"
    some = comparing(out)
    for value in ["left", "right", "tie", "left"] * 6:
        some.answer("Ada", some.state("Ada")["item"]["id"], value, 1)
    model = save_tiny(tmp_path / "model")
    for verb in ("reward", "dpo"):
        words = [verb, "--model", model, "--data", out, "--out", tmp_path / verb, "--steps", 1]
        assert main([str(word) for word in words]) == 0
    assert capsys.readouterr().out.count("data: 18 rows, 18 used") == 2


def test_written_pairs_are_chats(tmp_path, make=writing):
    """What a person writes becomes a row of the four ways' form, one turn or several; the same words come once."""
    out = tmp_path / "written.jsonl"
    dialogue = [*CHAT, {"role": "user", "content": "<b>And</b> the owl?"}, {"role": "assistant", "content": " {gone} "}]
    with serving(make(out)) as page:
        for messages, task in ((CHAT, "question"), (dialogue, " dialogue "), (CHAT, "question")):
            state = decide(page, "Ada", {"messages": messages, "task": task})[1]
        assert (state["done"], state["total"], state["item"]) == (2, None, None)
    rows = rows_of(out)
    assert [row["messages"] for row in rows] == [CHAT, [*dialogue[:3], {"role": "assistant", "content": "{gone}"}]]
    assert [row["task"] for row in rows] == ["question", "dialogue"] and len({row["id"] for row in rows}) == 2
    assert all((row["cluster"], row["source"], row["annotator"]) == ("written", "person", "Ada") for row in rows)
    for row in read_rows([out], ("messages",)):
        check_messages(row.values["messages"], need_assistant=True)


@pytest.mark.parametrize("value", [
    None, "text", {"messages": CHAT}, {"messages": CHAT, "task": " "}, {"messages": [], "task": "t"},
    {"messages": CHAT[:1], "task": "t"}, {"messages": [CHAT[0], {**CHAT[1], "content": " \n"}], "task": "t"},
    {"messages": [{**CHAT[0], "content": ""}, CHAT[1]], "task": "t"}, {"messages": CHAT * 2 + CHAT[:1], "task": "t"},
    {"messages": [{"role": "bot", "content": "x"}], "task": "t"}])
def test_half_a_pair_is_refused(value, tmp_path, make=writing):
    """No instruction, no response, no task or an unknown role: a sentence, and nothing is written."""
    some = make(tmp_path / "written.jsonl")
    with pytest.raises(MiniftError):
        some.answer("Ada", None, value, 1)
    assert not (tmp_path / "written.jsonl").exists()


def test_labels_are_written_and_hidden_ones_are_not_shown(tmp_path, make=annotating):
    """A row has its text, or both, and the label that was pressed; a label that came with the item stays unseen."""
    out = tmp_path / "labels.jsonl"
    texts = [{"id": 7, "text": "one", "label": "b"}, {"text": "two", "text_pair": "and"}, {"id": "x", "text": "three"}]
    with serving(make(out, texts=texts)) as page:
        seen = [decide(page, "Ada", value)[0] for value in ("a", "b", None)]
    assert [set(item) for item in seen] == [{"id", "text"}, {"id", "text", "text_pair"}, {"id", "text"}]
    keys = ("id", "text", "text_pair", "label", "annotator")
    assert [tuple(row.get(key) for key in keys) for row in rows_of(out)] == [
        ("7", "one", None, "a", "Ada"), (seen[1]["id"], "two", "and", "b", "Ada")]
    assert [(row["id"], row["verdict"]) for row in undecided(out)] == [("x", "skip")]


# ---- undo, coming back ----


def test_undo_takes_back_ones_own_last_decision(tmp_path, make=comparing):
    """Step by step, across decided and undecided ones, in the order of deciding; others' rows stay; sent twice, it
    undoes once."""
    out = tmp_path / "prefs.jsonl"
    with serving(make(out)) as page:
        ids = [decide(page, "Ada", value)[0]["id"] for value in ("left", "tie", "right", None)]
        decide(page, "Ben", "left")
        for left, last in ((3, ids[3]), (2, ids[2]), (1, ids[1])):
            for _ in range(2):
                state = ask(page, "POST", "/undo", {"annotator": "Ada", "last": last})[1]
                assert (state["done"], state["item"]["id"], state["last"]) == (left, last, ids[left - 1])
            assert len(rows_of(out)) + len(undecided(out)) == left + 1
        decide(page, "Ada", "right")
    assert [(row["annotator"], row["id"]) for row in rows_of(out)] == [
        ("Ada", ids[0]), ("Ben", ids[0]), ("Ada", ids[1])] and not undecided(out)


def test_the_files_are_the_state(tmp_path, make=comparing):
    """A new server on the same files shows each person the same next pair, in the same order, and undoes as the old
    one would; rows of another round are left as they are."""
    out, rng = tmp_path / "prefs.jsonl", iter("left tie right skip left tie left right".split())
    old = {"prompt": "earlier", "chosen": "x", "rejected": "y", "annotator": "Ada", "id": "old", "more": [1]}
    write_jsonl(out, [old])
    ids = []
    for n in range(8):
        some, value = make(out), next(rng)
        state = some.state("Ada")
        assert state["done"] == n and state == make(out).state("Ada")
        ids.append(state["item"]["id"])
        some.answer("Ada", ids[-1], None if value == "skip" else value, 0)
        assert make(out).state("Ben")["done"] == 0
    for n in reversed(range(8)):
        some = make(out)
        state = some.undo("Ada", some.state("Ada")["last"])
        assert (state["done"], state["undone"]["id"], state["item"]["id"]) == (n, ids[n], ids[n])
    assert make(out).undo("Ada", "old")["undone"] is None and rows_of(out) == [old] and not undecided(out)


def test_the_first_decision_stands(tmp_path, make=comparing):
    """A second answer to the same item, from another window or sent twice, changes nothing."""
    some = make(tmp_path / "prefs.jsonl")
    item = some.state("Ada")["item"]
    states = [some.answer("Ada", item["id"], value, 1) for value in ("left", "right", "tie", None, "left")]
    assert all(state == states[0] for state in states)
    row, = rows_of(tmp_path / "prefs.jsonl")
    assert row["chosen"] == item["answers"][0] and not undecided(tmp_path / "prefs.jsonl")


def test_two_people_at_once(tmp_path, make=annotating):
    """Two people (and three windows of one of them) decide at the same time: every item has one row of each."""
    out = tmp_path / "labels.jsonl"
    with serving(make(out, texts=[{"text": str(i)} for i in range(30)])) as page:
        def work_on(name):
            while (state := ask(page, "POST", "/state", {"annotator": name})[1])["item"]:
                body = {"annotator": name, "identity": state["item"]["id"], "value": "a", "seconds": 0}
                assert ask(page, "POST", "/answer", body)[0] == 200
        threads = [threading.Thread(target=work_on, args=(name,)) for name in ("Ada", "Ben", "Ada", "Ada")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counter((row["annotator"], row["text"]) for row in rows_of(out)) == {
        (name, str(i)): 1 for name in ("Ada", "Ben") for i in range(30)}


def test_a_foreign_change_is_not_overwritten(tmp_path, make=comparing):
    """When another program has written the file, a decision is refused, and the file stays as that program left it."""
    out = tmp_path / "prefs.jsonl"
    first, second = make(out), make(out)
    first.answer("Ada", first.state("Ada")["item"]["id"], "left", 1)
    before = out.read_bytes()
    with pytest.raises(MiniftError, match="changed by another program.*start it again"):
        second.answer("Ben", second.state("Ben")["item"]["id"], "left", 1)
    assert out.read_bytes() == before and second.state("Ben")["done"] == 0
    first.answer("Ada", first.state("Ada")["item"]["id"], "left", 1)
    assert len(rows_of(out)) == 2


# ---- the disk ----


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot flush a folder")
def test_flushed_before_confirmed(tmp_path, monkeypatch, make=comparing):
    """Before an answer returns, the new file and then, after it has its name, its folder are flushed to the disk."""
    events, fsync, replace = [], os.fsync, os.replace

    def flush(descriptor):
        events.append("folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "file")
        fsync(descriptor)

    def rename(source, target):
        events.append("rename")
        replace(source, target)

    some = make(tmp_path / "prefs.jsonl")
    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    state = some.answer("Ada", some.state("Ada")["item"]["id"], "left", 1)
    assert events == ["file", "rename", "folder"]
    some.undo("Ada", state["last"])
    assert events == ["file", "rename", "folder"] * 2


def start(*words):
    """(process, port, token, what it printed) of `python -m minift label ...`, when it has printed its address."""
    process = subprocess.Popen([sys.executable, "-m", "minift", "label", *map(str, words)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = ""
    for line in process.stdout:
        said += line
        if "Ctrl-C ends" in line:
            break
    port, token = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)", said).groups()
    return process, int(port), token, said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
def test_a_killed_server_loses_nothing(tmp_path):
    """SIGKILL while two people decide as fast as they can: all that was confirmed is in whole lines on the disk; the
    same command goes on, and Ctrl-C ends it with the agreement."""
    items, out = write(tmp_path / "items.jsonl", *({"text": str(i)} for i in range(400))), tmp_path / "labels.jsonl"
    words = ["annotate", "--items", items, "--labels", "a,b", "--annotators", "Ada", "Ben", "--out", out]
    process, port, token, _ = start(*words)
    confirmed = {"Ada": 0, "Ben": 0}

    def work_on(name):
        try:
            while True:
                item = ask(port, "POST", "/state", {"annotator": name}, X_Token=token)[1]["item"]
                body = {"annotator": name, "identity": item["id"], "value": "ab"[int(item["text"]) % 2], "seconds": 0}
                confirmed[name] = ask(port, "POST", "/answer", body, X_Token=token)[1]["done"]
        except (OSError, http.client.HTTPException):
            return

    threads = [threading.Thread(target=work_on, args=(name,)) for name in confirmed]
    for thread in threads:
        thread.start()
    end = time.time() + 60
    while min(confirmed.values()) < 12 and time.time() < end:
        time.sleep(0.001)
    process.kill()
    for thread in [process, *threads]:
        (thread.wait if thread is process else thread.join)()
    process.stdout.close()
    found = Counter(row["annotator"] for row in read_jsonl(out, ("id", "text", "label")))
    assert all(n <= found[name] <= n + 1 for name, n in confirmed.items()) and min(confirmed.values()) >= 12

    process, port, token, said = start(*words)
    assert f"{found['Ada']} by Ada" in said and said.count("http://") == 2
    state = ask(port, "POST", "/state", {"annotator": "Ben"}, X_Token=token)[1]
    assert state["done"] == found["Ben"] and state["item"]["text"] == str(found["Ben"])
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "agreement of pairs of annotators: 100.0%" in rest and "alpha: 1.000" in rest


# ---- who is refused ----

GOOD = {"annotator": "Ada"}
FOREIGN = {
    "no token": dict(leave_out=["X-Token"]), "wrong token": dict(X_Token="x"), "empty token": dict(X_Token=""),
    "token with more": dict(X_Token="{token}x"), "token that is no ASCII": dict(X_Token="\xe9"),
    "no host": dict(leave_out=["Host"]), "foreign host": dict(Host="evil.example:{port}"),
    "host without port": dict(Host="127.0.0.1"), "host of another port": dict(Host="127.0.0.1:1"),
    "rebound name": dict(Host="127.0.0.1.evil.example:{port}"), "foreign origin": dict(Origin="https://evil.example"),
    "null origin": dict(Origin="null"), "origin of another port": dict(Origin="http://127.0.0.1:1"),
    "origin with https": dict(Origin="https://127.0.0.1:{port}"),
}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    """A page for all refusals; whatever they try, nothing may be written."""
    out = tmp_path_factory.mktemp("refused") / "prefs.jsonl"
    with serving(comparing(out)) as page:
        yield page
    assert not out.exists()


@pytest.mark.parametrize("why", FOREIGN)
def test_strangers_are_refused(why, refusing):
    """A wrong or missing token, a foreign Host or Origin: 403 for every path, and not a word of what is there."""
    known = {"token": refusing.token, "port": refusing.server_address[1]}
    given = {name: value.format(**known) if isinstance(value, str) else value for name, value in FOREIGN[why].items()}
    for method, path, body in (("GET", "/", None), ("GET", "/setup", None), ("POST", "/state", GOOD),
                               ("POST", "/answer", {}), ("POST", "/undo", b"{"), ("GET", "/nowhere", None)):
        status, answer = ask(refusing, method, path, body, **given)
        assert status == 403 and set(answer) == {"headers", "error"} and refusing.token not in str(answer), path
    if "token" in why:
        assert ask(refusing, "GET", "/?token=x", **given)[0] == ask(refusing, "GET", "/?tokens", **given)[0] == 403
        status, _ = ask(refusing, "POST", f"/state?token={refusing.token}", GOOD, **given)
        assert status == 403, "a request that does something needs the header, which no other page can set"


def test_friends_are_let_in(refusing):
    """The printed address opens the page; localhost and one's own Origin are fine."""
    port = refusing.server_address[1]
    path = refusing.url().removeprefix(f"http://127.0.0.1:{port}")
    assert ask(refusing, "GET", path, leave_out=["X-Token"])[1]["text"].startswith("<!doctype html>")
    assert refusing.url("Åsa & co").endswith("&name=%C3%85sa%20%26%20co")
    for name in ("127.0.0.1", "localhost"):
        given = {"Host": f"{name}:{port}", "Origin": f"http://{name}:{port}"}
        assert ask(refusing, "POST", "/state", GOOD, **given)[0] == 200


def test_the_token_cannot_be_guessed(tmp_path):
    """At least 256 bits, from the system's randomness, another one for each server."""
    found = set()
    for _ in range(20):
        page = server.Server(comparing(tmp_path / "p.jsonl"))
        found.add(page.token)
        page.server_close()
    assert len(found) == 20 and all(re.fullmatch(r"[\w-]{43,}", token) for token in found)


def test_heard_on_this_machine_only(refusing):
    """The socket is bound to 127.0.0.1: another address of the machine, even a loopback one, is not answered."""
    assert refusing.socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", refusing.server_address[1]), timeout=2)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "CONNECT", "BREW", "get"])
def test_other_methods_are_refused(method, refusing):
    """Whatever is neither GET nor POST is 405, and so is nothing allowed to other origins."""
    status, answer = ask(refusing, method, "/state", GOOD)
    assert status == 405 and answer["headers"]["Allow"] == "GET, POST"
    assert not any(name.lower().startswith("access-control") for name in answer["headers"])


def test_bodies_have_a_limit(refusing):
    """64 KB are read, a byte more is 413, however much is announced; a body must say how long it is."""
    for size, expected in ((65536, 200), (65537, 413), (3_000_000, 413)):
        body = json.dumps(GOOD).encode().ljust(size)
        assert ask(refusing, "POST", "/state", body)[0] == expected, size
    for length in (None, "-1", "x", "+5", "1_0", "٣", "0" * 20 + "9" * 12):
        given = {} if length is None else {"Content_Length": length.encode()}
        assert ask(refusing, "POST", "/state", b"", leave_out=["Content-Length"] * (not given), **given)[0] == 411
    assert ask(refusing, "POST", "/state", b"0\r\n\r\n", Transfer_Encoding="chunked")[0] == 411


def test_a_slow_sender_hears_why_it_is_refused(refusing):
    """What a refused request still brings is read, so that the reply is not lost with the connection."""
    with socket.create_connection(refusing.server_address, timeout=10) as sender:
        sender.sendall(b"POST /state HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 400000\r\n\r\n" + b"x" * 200_000)
        time.sleep(0.3)
        sender.sendall(b"x" * 200_000)
        assert b" 403 " in sender.recv(1000)


@pytest.mark.parametrize("body, said", [
    (b"", "invalid JSON"), (b"[]", "expected an object"), (b'{"annotator": NaN}', "not a finite"), (b"\xff", "UTF-8"),
    (b'{"annotator": "\\ud800"}', "surrogate"), ({}, "expected the keys"), ({"annotator": "Ada", "x": 1}, "expected"),
    ({"annotator": 5}, "name"), ({"annotator": " "}, "name"), ({"annotator": "x" * 41}, "name"),
    ({"annotator": "a\u202eb"}, "name"), ({"annotator": "a\x00b"}, "name"), (b"[" * 30000, "recursion")])
def test_nonsense_is_answered_by_a_sentence(body, said, refusing):
    """A body that is not what it should be is 400 and one sentence."""
    status, answer = ask(refusing, "POST", "/state", body)
    assert status == 400 and said in answer["error"]


@pytest.mark.parametrize("change", [
    {"identity": "none"}, {"identity": None}, {"identity": ["x"]}, {"value": "up"}, {"value": ["left"]}, {"value": 1},
    {"seconds": -1}, {"seconds": "1"}, {"seconds": True}, {"seconds": None}, {"annotator": ""}])
def test_impossible_decisions_are_refused(change, refusing):
    """An unknown item, choice or time is 400, and nothing is written."""
    body = {"annotator": "Ada", "identity": next(iter(refusing.work.task.items)), "value": "left", "seconds": 1}
    assert ask(refusing, "POST", "/answer", body | change)[0] == 400 and not refusing.work.record.entries


def test_only_those_who_were_named_annotate(tmp_path, make=annotating):
    """With a list of annotators a name that is not in it is refused, spaces around it aside."""
    some = make(tmp_path / "labels.jsonl", annotators=["Ada", "Ben"])
    assert some.state("  Ben ")["annotator"] == "Ben"
    with pytest.raises(MiniftError, match="Cid is not among the annotators: Ada, Ben"):
        some.state("Cid")


def test_a_mistake_of_the_program_is_said(refusing, monkeypatch, capsys):
    """An exception that is nobody's input is 500, with its name on the page and the rest in the terminal."""
    monkeypatch.setattr(refusing.work, "state", lambda annotator: 1 / 0)
    status, answer = ask(refusing, "POST", "/state", GOOD)
    assert status == 500 and "ZeroDivisionError" in answer["error"] and "Traceback" in capsys.readouterr().err


# ---- the page's text ----


def test_only_the_pages_own_script_may_run(refusing):
    """The policy names the nonce of this very page, another each time, and nothing else that could run or be loaded."""
    seen = set()
    for _ in range(3):
        answer = ask(refusing, "GET", "/")[1]
        parts = answer["headers"]["Content-Security-Policy"].split(";")
        policy = dict(part.strip().partition(" ")[::2] for part in parts)
        nonces = set(re.findall(r'nonce="([^"]*)"', answer["text"]))
        nonce, = nonces
        seen.add(nonce)
        assert policy["default-src"] == "'none'" and policy["script-src"] == policy["style-src"] == f"'nonce-{nonce}'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    headers = ask(refusing, "POST", "/state", GOOD)[1]["headers"]
    assert len(seen) == 3 and "default-src 'none'" in headers["Content-Security-Policy"]
    for name, value in (("X-Content-Type-Options", "nosniff"), ("Cache-Control", "no-store"),
                        ("X-Frame-Options", "DENY"), ("Referrer-Policy", "no-referrer")):
        assert headers[name] == value


def test_the_page_is_one_file_and_writes_text_only(page=PAGE):
    """No external resource, no handler in an attribute, and none of the ways by which text becomes markup or code."""
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!data:,)|url\(|@import|https?:|//\w+\.", page)
    assert not re.search(r"\son\w+\s*=|\sstyle\s*=|javascript:", page)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|createContextual|DOMParser|srcdoc|"
                         r"\beval\b|new Function|setTimeout\(\s*[\"'`]|import\(", page)
    assert page.count("<script") == page.count("<style") == 1 and page.count("{nonce}") == 2


# ---- the verb ----


@pytest.fixture
def served(monkeypatch):
    """What the verb would serve: the servers, closed at once; `act`, if set, is done with the work first."""
    seen = type("Served", (list,), {"act": staticmethod(lambda some_work: None)})()

    def wait(page):
        seen.append(page)
        seen.act(page.work)
        page.server_close()
    monkeypatch.setattr(label, "wait", wait)
    return seen


def call(*words):
    return main(["label", *map(str, words)])


def test_compare_samples_once(tmp_path, served, monkeypatch, capsys):
    """--model answers each prompt twice before the page opens; coming back shows the same answers without sampling."""
    model, out = save_tiny(tmp_path / "model"), tmp_path / "prefs.jsonl"
    prompts = write(tmp_path / "p.jsonl", *({"prompt": f"Where is {i}?"} for i in range(5)), {"prompt": CHAT[:1]})
    words = ["compare", "--model", model, "--prompts", prompts, "--out", out, "--max-new-tokens", 4, "--batch-size", 2]
    assert call(*words) == 0
    pairs = rows_of(tmp_path / "prefs.pairs.jsonl")
    assert [row["prompt"] for row in pairs] == [f"Where is {i}?" for i in range(5)] + [CHAT[:1]]
    assert all(len(set(row["answers"])) == 2 for row in pairs) and len({str(row["answers"]) for row in pairs}) == 6
    assert "sampling" in capsys.readouterr().err
    monkeypatch.setattr(label, "sample_pairs", None)
    served.act = lambda some_work: some_work.answer("Ada", some_work.state("Ada")["item"]["id"], "tie", 1)
    assert call(*words) == 0 and list(served[0].work.task.items) == list(served[1].work.task.items)
    served.act = lambda some_work: None
    assert call("compare", "--pairs", tmp_path / "prefs.pairs.jsonl", "--out", out) == 0
    assert "1 by Ada" in capsys.readouterr().out and served[2].work.state("Ada")["done"] == 1
    save_tiny(tmp_path / "other")
    assert call(*[tmp_path / "other" if word is model else word for word in words]) == 2
    assert "answers of another model" in capsys.readouterr().err


def test_pairs_that_are_there_are_judged_again(tmp_path, served, capsys):
    """--pairs takes {"chosen", "rejected"} too, whose places are drawn anew; equal answers and repeated rows are left
    out."""
    rows = [{"prompt": "p", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(12)]
    data = write(tmp_path / "pairs.jsonl", *rows, rows[0], {"prompt": "p", "answers": ["x", "x"]})
    assert call("compare", "--pairs", data, "--out", tmp_path / "o.jsonl") == 0
    out = capsys.readouterr().out
    assert "2 rows left out" in out and "12 items to compare" in out
    some = served[0].work
    sides = {some.task.show(item, "Ada")["answers"][0][0] for item in some.task.items.values()}
    assert sides == {"c", "r"}


def test_annotators_get_their_agreement(tmp_path, served, capsys):
    """At the end: percent agreement and kappa as by hand on 20/5/10/15 of 50 shared items (0.7 and 0.4), and alpha."""
    items = write(tmp_path / "items.jsonl", *({"text": str(i)} for i in range(50)), {"text": "left out by both"})
    said = {"Ada": "a" * 25 + "b" * 25, "Ben": "a" * 20 + "b" * 5 + "a" * 10 + "b" * 15}

    def act(some_work):
        for name, labels in said.items():
            for value in [*labels, None]:
                some_work.answer(name, some_work.state(name)["item"]["id"], value, 1)
    served.act = act
    words = ["annotate", "--items", items, "--labels", "a, b", "--annotators", *said, "--out", tmp_path / "o.jsonl"]
    assert call(*words, "--guidelines", ROOT / "data" / "guidelines.md") == 0
    out = capsys.readouterr().out
    assert "annotators: 70.0%" in out and "kappa: 0.400" in out and "disputed: 15 items" in out
    # alpha by hand: D_o = 30/100; 55 a and 45 b among 100 ratings, D_e = 2 * 55 * 45 / (100 * 99)
    assert f"alpha: {1 - 0.3 / (2 * 55 * 45 / 9900):.3f} (95 %: " in out
    assert "100 rows in" in out and "2 ties and skips in" in out and "&name=" in out
    assert served[0].work.setup()["guidelines"].startswith("# Guidelines")


def test_agreement_on_pairs_is_about_answers_not_sides(tmp_path, make=comparing, agreement=label.agreement):
    """Two people who like the same answers agree fully, on whichever sides they saw them; a tie is a rating, a skip
    is none; without shared items the reason is told."""
    some = make(tmp_path / "prefs.jsonl")
    assert "no measure of agreement: " in agreement(["Ada", "Ben"], *some.ratings()[1:])[0]
    for name in ("Ada", "Ben"):
        for i in range(24):
            item = some.state(name)["item"]
            side = ("left", "right")[item["answers"][0].startswith("bad") ^ i % 2]
            some.answer(name, item["id"], {3: "tie", 4: None}.get(i, side), 1)
    names, ids, ratings = some.ratings()
    assert names == ["Ada", "Ben"] and ratings[0] == ratings[1] and len(ids) == 24
    assert Counter(ratings[0]) == {"first": 11, "second": 11, "tie": 1, None: 1}
    assert "Cohen's kappa: 1.000" in agreement(names, ids, ratings)


@pytest.mark.parametrize("words, said", [
    (["compare", "--out", "o"], "--pairs"), (["compare", "--model", "m", "--out", "o"], "--prompts"),
    (["compare", "--pairs", "{p}", "--prompts", "{p}", "--out", "o"], "either"),
    (["compare", "--pairs", "{one}", "--out", "o"], "one.jsonl:1: expected two texts"),
    (["compare", "--pairs", "{same}", "--out", "o"], "no item is left"),
    (["compare", "--pairs", "{ends}", "--out", "o"], "ends.jsonl:1: the prompt must end with a user turn"),
    (["compare", "--pairs", "{ids}", "--out", "o"], "two items have the id"),
    (["compare", "--pairs", "{p}", "--out", "{t}"], "t.jsonl:1: the key 'prompt' is missing"),
    (["annotate", "--items", "{t}", "--labels", "a", "--annotators", "A", "--out", "o"], "at least two different"),
    (["annotate", "--items", "{t}", "--labels", "a,a", "--annotators", "A", "--out", "o"], "at least two different"),
    (["annotate", "--items", "{t}", "--labels", "a,b", "--annotators", "A", "A ", "--out", "o"], "somebody twice"),
    (["annotate", "--items", "{p}", "--labels", "a,b", "--annotators", "A", "--out", "o"], "p.jsonl:1: expected"),
    (["annotate", "--items", "{number}", "--labels", "a,b", "--annotators", "A", "--out", "o"], "'id' must be"),
    (["write", "--out", "."], "is a folder"), (["write", "--out", "o", "--guidelines", "none.md"], "no file matches"),
    (["write", "--out", "o", "--port", "70000"], "most 65535"), (["write", "--out", "o", "--port", "{port}"], "port"),
    ([], "MODE")])
def test_mistakes_are_one_sentence(words, said, tmp_path, monkeypatch, served, capsys):
    """Exit code 2 and what to mend, before any page is served."""
    monkeypatch.chdir(tmp_path)
    pair = {"prompt": "p", "answers": ["a", "b"]}
    files = {"p": [pair], "one": [{"prompt": "p", "answers": ["a"]}], "same": [{"prompt": "p", "answers": ["a", "a"]}],
             "ends": [{**pair, "prompt": CHAT}], "t": [{"text": "x"}], "number": [{"text": "x", "id": 1.5}],
             "ids": [{**pair, "id": 1}, {**pair, "id": "1", "prompt": "q"}]}
    names = {name: write(tmp_path / f"{name}.jsonl", *rows).name for name, rows in files.items()}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = [word.format(**names, port=taken.getsockname()[1]) for word in words]
        assert call(*words) == 2 and not served
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_the_guidelines_are_there():
    """data/guidelines.md: steps, limits, pitfalls, good and bad examples and doubts for each of the three tasks; every
    paragraph is one line, so that the page can wrap it."""
    text = (ROOT / "data" / "guidelines.md").read_text(encoding="utf-8")
    parts = re.split(r"^# Part \d", text, flags=re.M)
    assert len(parts) == 4
    for part in parts[1:]:
        assert {"## Steps", "## Pitfalls", "## In doubt"} <= set(part.splitlines()) and "Good" in part and "Bad" in part
    assert "Length limits" in parts[3] and "Formatting" in parts[3] and not re.search(r"[^\n.:?!\"]\n[a-z]", text)
