"""What 200 clicks are worth: a simulated person chooses on the real page, then `reward` and `dpo` learn from the file.

`python -m tests.browser.clicks --out runs/clicks` does for each seed what a user would do: the tour's SFT model writes
two stories for each request; `label compare` shows them in Chromium; a person reads both from the page and presses an
arrow key; `reward` and `dpo` train on what was written. Measured on requests and pairs that nobody has seen. The person
is the gold rubric with Bradley-Terry noise of half a point, and presses "tie" where the rubric sees no difference.
Left out: other numbers of clicks, several people.
"""

import argparse
import random
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from minift.core.files import read_json, write_json
from minift.evaluation.clusters import over_seeds
from minift.evaluation.metrics import bootstrap_interval
from minift.formats.checkpoint import load_model
from minift.studies.stories import NOISE, TEMPERATURE
from minift.text.answers import sample_answers
from minift.text.jsonl import read_jsonl, write_jsonl
from minift.ways.preferences import chooses_first, sample_pairs
from minift.world.instructions import story_requests
from minift.world.rubric import judge

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
KEYS = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowUp"}
STORY_TOKENS = 144
REWARD = ("--epochs", "4", "--lr", "1e-3")      # chosen on another seed than those that are reported
DPO = ("--epochs", "4", "--lr", "1e-4", "--beta", "0.2")


# ---- the person at the page ----


@contextmanager
def chromium():
    """A browser without a window."""
    from playwright.sync_api import sync_playwright
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def page_of(browser, *arguments):
    """The page that `label compare` serves with these arguments, opened by Ada."""
    command = [sys.executable, "-m", "minift", "label", "compare", *map(str, arguments)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8")
    try:
        address = next(line.split()[-1] for line in server.stdout if line.startswith("the page"))
        page = browser.new_page()
        page.goto(f"{address}&name=Ada")
        yield page
        page.close()
    finally:
        server.terminate()          # every choice is on the disk
        server.wait()


def click(page, score, n, noise, seed):
    """Press arrow keys until n pairs are decided. score(request, answer) -> what the person thinks, without noise."""
    done = page.locator("#count").filter(has_text=" of ")
    done.wait_for()
    while (k := int(done.text_content().split()[0])) < n:
        request, *answers = (page.locator(name).text_content() for name in ("#prompt", "#answer-left", "#answer-right"))
        page.keyboard.press(KEYS[choose(*(score(request, answer) for answer in answers), noise, f"{seed}/{request}")])
        page.locator("#count").filter(has_text=f"{k + 1} of ").wait_for()


def choose(left, right, noise, seed):
    """What a person does who gives the two answers these points."""
    if left == right:
        return "tie"
    return "left" if chooses_first(left, right, random.Random(seed), noise) else "right"


# ---- from the model to the measures ----


def run_seed(out, seed, n):
    """All steps for one seed -> the measures: a share or points, each with its 95 % interval (low, high)."""
    sft, prefs = out / "tour" / "sft", out / "prefs.jsonl"
    if not sft.exists():
        minift("tour", "--stages", "sft", "--seed", seed, "--out", out / "tour")
    requests = story_requests(n + n // 5, seed, "clicks")       # some pairs are alike, and left out
    write_jsonl(out / "prompts.jsonl", [{"prompt": prompt} for prompt, _ in requests])
    answers = ("--model", sft, "--prompts", out / "prompts.jsonl", "--max-new-tokens", STORY_TOKENS, "--seed", seed)
    with chromium() as browser, page_of(browser, *answers, "--temperature", TEMPERATURE, "--out", prefs) as page:
        click(page, gold(requests), n, NOISE, seed)
    minift("reward", "--model", sft, "--data", prefs, "--out", out / "reward", "--seed", seed, *REWARD, "--overwrite")
    minift("dpo", "--model", sft, "--data", prefs, "--out", out / "dpo", "--seed", seed, *DPO, "--overwrite")
    return {"decided": len(read_jsonl(prefs)), **reward_accuracy(out, seed), **gold_scores(out, seed)}


def minift(*arguments):
    print("python -m minift", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", "minift", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def gold(requests):
    """score(request, answer): the rubric's points, 0 to 10."""
    scenes = dict(requests)
    return lambda request, answer: judge(answer, scenes[request]).score


def reward_accuracy(out, seed, n=200):
    """How often the reward model puts the better of two new stories first; pairs without a better one are left out."""
    requests = story_requests(n, seed, "valid")
    score, rows = gold(requests), []
    model, tokenizer = load_model(out / "tour" / "sft")
    for pair in sample_pairs(model, tokenizer, [prompt for prompt, _ in requests], max_new_tokens=STORY_TOKENS,
                             temperature=TEMPERATURE, seed=seed):
        worse, better = sorted(pair["answers"], key=lambda answer: score(pair["prompt"], answer))
        if score(pair["prompt"], worse) < score(pair["prompt"], better):
            rows.append({"prompt": pair["prompt"], "chosen": better, "rejected": worse})
    write_jsonl(out / "held-out.jsonl", rows)
    minift("evaluate", "--model", out / "reward", "--data", out / "held-out.jsonl", "--out", out / "reward.json",
           "--overwrite")
    found = read_json(out / "reward.json")
    low, high = found["pair_accuracy_95%"].split(" to ")
    return {"pairs": found["pairs"], "reward_accuracy": found["pair_accuracy"],
            "reward_accuracy_interval": [float(low), float(high)]}


def gold_scores(out, seed, n=200):
    """The gold score of stories for new requests, before and after DPO, and of their difference, request by request."""
    requests = story_requests(n, seed, "test")
    prompts, score = [prompt for prompt, _ in requests], gold(requests)
    points = {}
    for name in ("tour/sft", "dpo"):
        answers = sample_answers(*load_model(out / name), prompts, max_new_tokens=STORY_TOKENS, seed=seed,
                                 temperature=TEMPERATURE)
        points[name] = [score(answer.prompt, answer.text) for answer in answers]
    before, after = points.values()
    found = {"gold_before": before, "gold_after": after, "gain": [b - a for a, b in zip(before, after)]}
    return {**{name: sum(values) / n for name, values in found.items()},
            **{f"{name}_interval": list(bootstrap_interval(values)) for name, values in found.items()}}


def run(out, seeds=(0, 1, 2, 3, 4), n=200):
    """Measure each seed that is not yet in `out`, print a line for each and the mean; returns {"seeds", "mean"}."""
    found = []
    for seed in seeds:
        path = Path(out) / f"seed-{seed}" / "measures.json"
        if not path.exists():
            write_json(path, run_seed(path.parent, seed, n))
        found.append(read_json(path))
        print(f"seed {seed}, {found[-1]['decided']} choices: " + ", ".join(
            f"{name} {found[-1][name]:.3g} ({low:.3g} to {high:.3g})" for name, (low, high) in intervals(found[-1])))
    mean = over_seeds([{name: one[name] for name, _ in intervals(one)} for one in found])
    mean = {name: mean[name] for name, _ in intervals(found[0])}
    print(f"mean of {len(found)} seeds: " + ", ".join(f"{name} {entry['mean']:.3g}" + (
        f" ({entry['low']:.3g} to {entry['high']:.3g})" if "low" in entry else "") for name, entry in mean.items()))
    result = {"command": "python -m tests.browser.clicks --out runs/clicks", "clicks": n, "noise": NOISE,
              "reward": REWARD, "dpo": DPO, "mean": mean, "seeds": dict(zip(map(str, seeds), found))}
    write_json(Path(out) / "clicks.json", result)
    return result


def intervals(measures):
    """[(name, [low, high])] of the measures that have an interval."""
    return [(name.removesuffix("_interval"), value) for name, value in measures.items() if name.endswith("_interval")]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="the folder for the results; goes on with what is in it")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0, 1, 2, 3, 4))
    parser.add_argument("--clicks", dest="n", metavar="N", type=int, default=200)
    run(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
