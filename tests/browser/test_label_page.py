"""The labelling page in a real Chromium: clicked, typed, killed, attacked, narrowed.

Needs the package of tests/browser/requirements.txt and a chromium on the PATH; without them every test here is
skipped, and says so.
"""

import json
import os
import signal
import subprocess
import time

import clicks
import pytest
from test_jobs import save_tiny
from test_label import CHAT, PAIRS, TEXTS, annotating, comparing, rows_of, serving, undecided, writing

from minift.__main__ import main
from minift.label import record, tasks, work
from minift.text.jsonl import write_jsonl

CHROMIUM = clicks.CHROMIUM
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is missing: pip install -r tests/browser/requirements.txt")
if not CHROMIUM:
    pytest.skip("there is no chromium on the PATH: apt-get install chromium lets the page be driven",
                allow_module_level=True)
expect = playwright.expect
expect.set_options(timeout=10_000)
FLAGS = [*clicks.FLAGS, "--host-resolver-rules=MAP evil.example 127.0.0.1"]


@pytest.fixture(scope="module")
def driver():
    with playwright.sync_playwright() as started:
        yield started


@pytest.fixture(scope="module")
def browser(driver):
    launched = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield launched
    launched.close()


@pytest.fixture
def visit(browser):
    """visit(address, ...) opens a page in a profile of its own; nothing may complain on its console in the end."""
    opened, complaints = [], []

    def open_page(address, **settings):
        opened.append(browser.new_context(**settings))
        page = opened[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: (complaints.append("a dialog opened"), dialog.dismiss()))
        page.goto(address)
        return page

    open_page.complaints = complaints
    yield open_page
    for context in opened:
        context.close()
    assert not complaints


def count(page, text):
    """Wait until the page says how far one is."""
    expect(page.locator("#count")).to_have_text(text)


def still(page, text):
    """Wait until the page says so, and see that it does not go on."""
    count(page, text)
    page.wait_for_timeout(120)
    count(page, text)


def side(page, name):
    return page.locator(f"#answer-{name}").text_content()


# ---- the three modes, by mouse and by keyboard ----


def test_compare_by_mouse_and_keyboard(tmp_path, visit):
    """Clicks, arrow keys, Tab and Enter choose what stands where the person sees it; ties, skips, undo; then it is
    done; a held key, a double click and a key with Ctrl decide nothing more."""
    out, chosen = tmp_path / "prefs.jsonl", []
    with serving(comparing(out, PAIRS[:7])) as server:
        page = visit(server.url())
        page.get_by_label("Your name").fill(" Ada ")
        page.keyboard.press("Enter")
        count(page, "0 of 7")
        assert "name=Ada" in page.url and page.locator("#prompt").text_content() == PAIRS[0]["prompt"]
        chosen.append(side(page, "left"))
        page.get_by_role("button", name="A is better").click(click_count=2, delay=80)
        still(page, "1 of 7")
        chosen.append(side(page, "right"))
        page.keyboard.down("ArrowRight")
        count(page, "2 of 7")
        page.keyboard.down("ArrowRight")        # the keyboard repeats a key that is held
        still(page, "2 of 7")
        page.keyboard.up("ArrowRight")
        page.keyboard.press("ArrowUp")
        count(page, "3 of 7")
        page.keyboard.press("s")
        count(page, "4 of 7")
        page.keyboard.press("Control+u")
        still(page, "4 of 7")
        page.keyboard.press("u")
        count(page, "3 of 7")
        assert page.locator("#prompt").text_content() == PAIRS[3]["prompt"] and not undecided(out)[1:]
        chosen.append(side(page, "left"))
        page.keyboard.press("ArrowLeft")
        count(page, "4 of 7")
        chosen.append(side(page, "right"))
        page.locator("#tie").focus()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        count(page, "5 of 7")
        page.get_by_role("button", name="Skip").click()
        count(page, "6 of 7")
        chosen.append(side(page, "right"))
        page.keyboard.press("ArrowRight")
        count(page, "7 of 7")
        expect(page.get_by_role("heading", name="All done")).to_be_focused()
        expect(page.get_by_role("button", name="A is better")).to_be_hidden()
        page.get_by_role("button", name="Undo").click()
        count(page, "6 of 7")
        page.keyboard.press("ArrowRight")
        count(page, "7 of 7")
        assert not visit.complaints
        server.shutdown()
        server.server_close()
        page.keyboard.press("u")
        expect(page.get_by_role("alert")).to_contain_text("The server does not answer, so nothing was saved")
        visit.complaints.clear()                # the browser's own word about the lost connection
    rows = rows_of(out)
    assert [row["chosen"] for row in rows] == chosen and len(undecided(out)) == 2
    assert all(0 <= row["seconds"] < 60 and row["annotator"] == "Ada" for row in rows)
    assert any(row["seconds"] > 0 for row in rows)      # the server rounds to 0.01 s, and a test may press a key sooner


def test_annotate_by_mouse_and_keyboard(tmp_path, visit):
    """The guidelines stand beside the item; one's name is in the list; number keys and clicks label."""
    out = tmp_path / "labels.jsonl"
    some = annotating(out, annotators=["Ada", "Ben"], labels=["happy", "sad"])
    some.guidelines = "# Rules\n- *Read* it."
    with serving(some) as server:
        page = visit(server.url(), viewport={"width": 1280, "height": 800})
        page.get_by_role("button", name="Ben").click()
        count(page, "0 of 8")
        guide, item = (page.locator(name).bounding_box() for name in ("#guidelines", "#annotate"))
        assert guide["x"] >= item["x"] + item["width"] and page.get_by_text("- *Read* it.", exact=True).is_visible()
        page.keyboard.press("2")
        count(page, "1 of 8")
        page.get_by_role("button", name="happy").click()
        count(page, "2 of 8")
        for key, then in (("9", 2), ("ArrowLeft", 2), ("1", 3), ("u", 2), ("s", 3)):
            page.keyboard.press(key)
            count(page, f"{then} of 8")
        expect(page.locator("#text")).to_have_text(TEXTS[3]["text"])
    assert [(row["id"], row["label"], row["annotator"]) for row in rows_of(out)] == [
        ("t0", "sad", "Ben"), ("t1", "happy", "Ben")]


def test_write_by_mouse_and_keyboard(tmp_path, visit):
    """Shortcuts do not act inside a field; Ctrl+Enter and the button save; a mistake is told and nothing is lost; undo
    brings a pair back to be mended; what is not saved outlives the page."""
    out = tmp_path / "written.jsonl"
    with serving(writing(out)) as server:
        page = visit(server.url("Ada"))
        instruction, response = (page.get_by_label(name, exact=True) for name in ("Instruction", "Response"))
        instruction.fill("Who?")
        page.keyboard.press("Control+Enter")
        expect(page.get_by_role("alert")).to_contain_text("assistant's content is empty")
        visit.complaints.clear()                # the browser's own word about the status 400
        page.keyboard.press("Tab")
        page.keyboard.insert_text("<i>us</i>\nit")
        page.keyboard.press("Control+Enter")
        count(page, "1 written")
        expect(page.get_by_role("alert")).to_be_hidden()
        expect(instruction).to_be_focused()
        instruction.press_sequentially("u su")
        expect(instruction).to_have_value("u su")
        instruction.fill(CHAT[0]["content"])
        response.fill(CHAT[1]["content"])
        page.get_by_role("button", name="Add a turn").click()
        instruction.nth(1).fill("And now?")
        response.nth(1).fill("No more.")
        page.get_by_label("Kind of task").fill("dialogue")
        page.reload()
        expect(response.nth(1)).to_have_value("No more.")
        page.get_by_role("button", name="Save").click()
        count(page, "2 written")
        page.get_by_role("button", name="Undo").click()
        count(page, "1 written")
        expect(instruction.nth(1)).to_have_value("And now?")
        page.get_by_role("button", name="Remove the last turn").click()
        page.get_by_role("button", name="Save").click()
        count(page, "2 written")
    assert [row["messages"] for row in rows_of(out)] == [
        [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "<i>us</i>\nit"}], CHAT]
    assert [row["task"] for row in rows_of(out)] == ["written", "dialogue"]


# ---- coming back, and company ----


@pytest.mark.skipif(os.name == "nt", reason="groups of processes are killed as on POSIX")
def test_the_browser_is_killed_in_the_middle(tmp_path, driver, visit):
    """A browser that dies by SIGKILL takes nothing with it: the address opens where it was left, the same way round."""
    out, profile = tmp_path / "prefs.jsonl", tmp_path / "profile"
    with serving(comparing(out)) as server:
        process = subprocess.Popen([CHROMIUM, "--headless", *FLAGS, "--remote-debugging-port=0", "--no-first-run",
                                    f"--user-data-dir={profile}"], start_new_session=True,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end, port = time.time() + 30, profile / "DevToolsActivePort"
            while not (port.exists() and port.read_text(encoding="utf-8").count("\n")) and time.time() < end:
                time.sleep(0.05)
            connected = driver.chromium.connect_over_cdp(f"http://127.0.0.1:{port.read_text(encoding='utf-8').split()[0]}")
            page = connected.contexts[0].new_page()
            page.goto(server.url("Ada"))
            count(page, "0 of 24")
            for i, key in enumerate(("ArrowLeft", "ArrowUp", "ArrowRight"), start=1):
                page.keyboard.press(key)
                count(page, f"{i} of 24")
            address, left = page.url, side(page, "left")
            page.keyboard.down("ArrowLeft")         # not waited for: it may be on the disk or not
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        page = visit(address)
        expect(page.locator("#count")).to_have_text("3 of 24" if len(rows_of(out)) == 2 else "4 of 24")
        if len(rows_of(out)) == 2:
            assert side(page, "left") == left
    assert len(rows_of(out)) in (2, 3) and len(undecided(out)) == 1


def test_two_people_in_turn(tmp_path, visit):
    """Two browsers at once: each has its own progress, its own undo and its own sides."""
    out = tmp_path / "prefs.jsonl"
    with serving(comparing(out)) as server:
        ada, ben = visit(server.url("Ada")), visit(server.url("Ben"))
        for i in range(4):
            count(ada, f"{i} of 24")
            count(ben, f"{i} of 24")
            ada.keyboard.press("ArrowLeft")
            ben.keyboard.press("ArrowRight")
        count(ada, "4 of 24")
        count(ben, "4 of 24")
        ada.keyboard.press("u")
        count(ada, "3 of 24")
        ben.keyboard.press("s")
        count(ben, "5 of 24")
    people = [row["annotator"] for row in rows_of(out)]
    assert (people.count("Ada"), people.count("Ben")) == (3, 4) and undecided(out)[0]["annotator"] == "Ben"


def liked(request, answer):
    """How many words, four of them as one."""
    return len(answer.split()) // 4


def test_clicks_on_the_real_page_train_a_reward_model_and_a_policy(tmp_path, browser, click=clicks.click):
    """The command serves what a model wrote; a person who likes many words, read off the page, presses arrow keys, is
    stopped and comes back; the file says what was liked, and `reward` and `dpo` train on it."""
    model, prompts, out = save_tiny(tmp_path / "model"), tmp_path / "prompts.jsonl", tmp_path / "prefs.jsonl"
    write_jsonl(prompts, [{"prompt": f"Story {i}?"} for i in range(12)])
    for n in (5, 10):
        given = ("--model", model, "--prompts", prompts, "--out", out, "--max-new-tokens", 24)
        with clicks.page_of(browser, *given) as page:
            click(page, liked, n, noise=0, seed=0)
        assert len(rows_of(out)) + len(undecided(out)) == n
    assert rows_of(out) and all(liked("", row["chosen"]) > liked("", row["rejected"]) for row in rows_of(out))
    assert undecided(out) and all(liked("", a) == liked("", b) for a, b in (row["answers"] for row in undecided(out)))
    for verb in ("reward", "dpo"):
        given = ["--model", str(model), "--data", str(out), "--out", str(tmp_path / verb)]
        assert main([verb, *given, "--steps", "2"]) == 0


# ---- hostile texts, strangers ----

HOSTILE = ("<script>window.hit = 1</script>", "<img src=x onerror='window.hit = 1'>", "</p></script><h1>Big</h1>",
           "<svg/onload=window.hit=1>", "{nonce} {{7*7}} ${7*7} <%= 7 %>", "javascript:window.hit=1", "&lt;b&gt; &amp;",
           "\u202eright to left\u2028<style>*{display:none}</style>", "\x00\x07<eos><user>😀 東京 \u0301")


def hostile(mode, out):
    """A work whose every text is hostile: the prompt, the answers, the items, the labels, the guidelines."""
    a, b, c, *_ = HOSTILE
    everything = "\n".join(HOSTILE)
    if mode == "compare":
        rows = [{"prompt": [{"role": "system", "content": a}, {"role": "user", "content": everything}],
                 "answers": [everything, text]} for text in HOSTILE]
        task = tasks.Compare([tasks.Compare.item(row, "row") for row in rows])
    else:
        rows = [{"text": text, "text_pair": everything} for text in HOSTILE]
        task = tasks.Annotate([tasks.Annotate.item(row, "row") for row in rows], [b, c, "'\"`", "constructor"])
    return work.Work(task, record.Record(out, task.required), guidelines=everything)


@pytest.mark.parametrize("mode", ["compare", "annotate"])
def test_hostile_text_is_text(mode, tmp_path, visit):
    """Whatever a model, a file, a label or a name says is shown letter by letter, and nothing of it runs or becomes an
    element."""
    out, everything, name = tmp_path / "out.jsonl", "\n".join(HOSTILE), "<img src=x onerror=hit()>"
    with serving(hostile(mode, out)) as server:
        page = visit(server.url(name), viewport={"width": 1280, "height": 900})
        for i, text in enumerate(HOSTILE):
            count(page, f"{i} of {len(HOSTILE)}")
            shown = [side(page, "left"), side(page, "right")] if mode == "compare" else [
                page.locator("#text-pair").text_content(), page.locator("#text").text_content()]
            assert sorted(shown) == sorted([everything, text])
            page.keyboard.press("ArrowLeft" if mode == "compare" else "1")
        count(page, f"{len(HOSTILE)} of {len(HOSTILE)}")
        guide = page.locator("#guidelines > p")
        assert [guide.nth(i).text_content() for i in range(guide.count())] == everything.split("\n")
        assert page.locator("#who").text_content() == name
        assert page.locator("script, style").count() == 2 and page.locator("img, svg, iframe, p h1").count() == 0
        assert page.evaluate("window.hit") is None and page.locator("[onerror], [onload]").count() == 0
    assert len(rows_of(out)) == len(HOSTILE) and rows_of(out)[0]["annotator"] == name


ATTACK = """async ([address, token, body]) => {
    const said = [];
    for (const options of [{method: "POST", body, mode: "no-cors"},
                           {method: "POST", body, headers: {"X-Token": token}}]) {
        try { const reply = await fetch(address, options); said.push(`${reply.type} ${reply.status}`); }
        catch (error) { said.push(error.name); }
    }
    return said;
}"""
INJECT = """() => {
    const script = document.createElement("script");
    try { script.textContent = "window.hit = 1"; } catch { return; }
    document.body.append(script);
}"""


def test_strangers_in_the_same_browser(tmp_path, visit):
    """A wrong token opens nothing, nor does another name that leads here; another site's script, even with the right
    token, neither reads nor writes; the page's own policy stops a script that somebody got into it."""
    out = tmp_path / "prefs.jsonl"
    with serving(comparing(out)) as server, serving(comparing(tmp_path / "other.jsonl")) as other:
        port, item = server.server_address[1], next(iter(server.work.task.items))
        page = visit(server.url("Ada").replace(server.token, "x" * 43))
        assert "wrong or missing token" in page.content() and page.locator("button").count() == 0
        page.goto(server.url("Ada").replace("127.0.0.1", "evil.example"))
        assert "foreign Host" in page.content()
        body = json.dumps({"annotator": "Ada", "identity": item, "value": "left", "seconds": 1})
        given = [f"http://127.0.0.1:{port}/answer", server.token, body]
        page.route("http://evil.example/", lambda route: route.fulfill(body="<title>evil</title>"))
        page.goto("http://evil.example/")
        assert set(page.evaluate(ATTACK, given)) <= {"opaque 0", "TypeError"}
        page.goto(other.url("Ada"))             # another port is another origin
        count(page, "0 of 24")
        assert page.evaluate(ATTACK, given) == ["TypeError"] * 2, "the page may speak with its own server only"
        page.evaluate(INJECT)
        assert page.evaluate("window.hit") is None
        visit.complaints.clear()                # the browser's own words about all of this
    assert not out.exists()


# ---- sizes, colours, names ----


def long(mode, out):
    """A work with words too long for any line."""
    word, name = "long" * 60, "N" * 40
    if mode == "write":
        return writing(out)
    if mode == "annotate":
        return annotating(out, labels=["happy", "x" * 70, *"cdefghi"], texts=[{"text": word, "text_pair": word}])
    some = comparing(out, [{"prompt": word, "answers": [word, f"{name} " * 60]}])
    some.guidelines = f"# {word}\n- {word}"
    return some


# [contrast of the text with what is behind it, the element] for all that is seen, as WCAG 2 defines it
CONTRAST = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = numbers(getComputedStyle(e).backgroundColor);
            if (colour.length === 3 || colour[3] === 1) return colour;
        }
    };
    return [...document.querySelectorAll("h1, h2, p, b, span, label, button, kbd, summary, textarea, input")]
        .filter(e => e.checkVisibility() && !e.closest(":disabled")).map(e => {
            const style = getComputedStyle(e), opacity = Number(style.opacity);
            const back = behind(e), own = numbers(style.color);
            const front = own.slice(0, 3).map((c, i) => c * opacity + back[i] * (1 - opacity));
            const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), e.outerHTML.slice(0, 60)];
        });
}"""


@pytest.mark.parametrize("mode", ["compare", "annotate", "write"])
def test_narrow_dark_and_named(mode, tmp_path, visit):
    """At a phone's width nothing scrolls sideways and the buttons stay in view, large enough for a finger; in light and
    dark text stands out by 4.5 to 1 (WCAG AA); each field and button has a name; the focus is seen."""
    with serving(long(mode, tmp_path / "out.jsonl")) as server:
        page = visit(server.url("N" * 40), viewport={"width": 320, "height": 640}, has_touch=True)
        expect(page.locator("#bar")).to_be_visible()
        if mode == "write":
            page.get_by_role("button", name="Add a turn").tap()
            page.get_by_label("Response", exact=True).first.fill("long" * 80)
        for width in (320, 375, 1280):
            page.set_viewport_size({"width": width, "height": 640})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            last = page.get_by_role("button", name="Undo").bounding_box()
            assert last["y"] + last["height"] <= 640, "the buttons stay in view"
        sizes = [button.bounding_box() for button in page.get_by_role("button").all()]
        assert all(size["height"] >= 24 and size["width"] >= 24 for size in sizes)
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            found = page.evaluate(CONTRAST)
            assert len(found) > 5 and not [entry for entry in found if entry[0] < 4.5]
        tree = page.locator("body").aria_snapshot()
        assert not [line for line in tree.splitlines()
                    if line.strip().rstrip(":") in ("- button", "- textbox", "- progressbar")], "a thing without a name"
        assert "status" in tree and "heading" in tree and page.locator("html").get_attribute("lang") == "en"
        expect(page.get_by_role("progressbar", name="Progress")).to_be_visible(visible=mode != "write")
        page.keyboard.press("Tab")
        focus = page.evaluate("[getComputedStyle(document.activeElement).outlineWidth, document.activeElement.tagName]")
        assert focus[0] == "3px" and focus[1] != "BODY"
