"""Policy-gradient estimators against the true gradient, in worlds so small that every expectation is an exact sum.

Bias and variance: answers of one token, and all groups that can be drawn. Length bias and KL: answers of unequal
length. Advantages and losses are those of methods/grpo.py and ppo.py, gradients are autograd's. Papers: those of
grpo.py; for the KL, Tang & Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL". Left out:
clipping (in the first step all ratios are 1), samples from an older policy.
"""

import itertools
import math

import torch

from minift import show
from minift.core.logprobs import kl_estimate, masked_whiten
from minift.methods import grpo, ppo
from minift.studies.table_world import RULES, World, all_groups, compare, divergence, follow, judge_rule, long_world

SETTINGS = {
    "sizes": (2, 4, 8, 16), "sizes_two_prompts": (2, 4, 8), "longest": 4, "group_size": 3, "beta": 0.2,
    "longest_path": 8, "steps": 100, "step_length": 0.05}
QUICK = {"sizes": (2, 3), "sizes_two_prompts": (2,), "longest": 3, "group_size": 2, "longest_path": 4, "steps": 5}
# Three answers of one token: their probabilities, those at a prompt that is nearly solved, rewards, a reference.
P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SOLVED = torch.tensor([0.9, 0.06, 0.04], dtype=torch.float64)
R = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
REF = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
KL, REVERSE = "KL(p || ref)", "KL(ref || p)"


def measure(cells, settings):
    """{"bias": name -> {"one", "two"}, "rules": name -> row, "paths": name -> points, "kl": world -> rows}."""
    bias = {name: cells(f"bias-{name}", judge_sizes, name, settings) for name in ESTIMATORS}
    rules = {name: cells(f"rule-{name}", judge_rule, name, settings) for name in RULES}
    paths = {name: cells(f"path-{name}", follow, name, settings) for name in ("grpo", "dr_grpo", "rloo")}
    short, long = World(["a", "b", "."], R.tolist()), long_world(settings["longest"])
    kl = {
        "one": cells("kl-one", compare_kl, short, P.log().unsqueeze(0), REF.log().unsqueeze(0)),
        "several": cells("kl-several", compare_kl, long, long.uniform(), long.reference())}
    return {"bias": bias, "rules": rules, "paths": paths, "kl": kl}


# ---- bias and variance: answers of one token ----


def critic(rewards, values, size):
    """PPO's advantages of answers of one token, from a critic that knows E r of each prompt."""
    mask = torch.ones(len(rewards), 1, dtype=torch.bool)
    advantages, _ = ppo.gae(rewards.unsqueeze(1), values.unsqueeze(1), mask)
    return advantages.squeeze(1)


def white_critic(rewards, values, size):
    """The same, whitened over the batch, as PPO does by default."""
    advantages = critic(rewards, values, size)
    return masked_whiten(advantages, torch.ones_like(advantages))


def by_rule(method, shift=0.0):
    """The advantages of grpo.group_advantages, without its eps."""
    return lambda rewards, values, size: grpo.group_advantages(rewards + shift, size, method, eps=0)


# Key -> its name in tables, and its advantages: (rewards (B,), E r of each answer's prompt (B,), group size) -> (B,).
ESTIMATORS = {
    "reinforce": ("REINFORCE", by_rule("reinforce")),
    "raised": ("REINFORCE, rewards + 1", by_rule("reinforce", 1.0)),
    "baseline": ("REINFORCE, baseline E r", critic),
    "rloo": ("RLOO", by_rule("rloo")),
    "rloo_kept": ("RLOO, equal groups left out", by_rule("rloo")),
    "dr_grpo": ("Dr. GRPO, r - mean", by_rule("dr_grpo")),
    "grpo": ("GRPO, (r - mean) / std", by_rule("grpo")),
    "ppo": ("PPO, whitened, perfect critic", white_critic)}


def judge_sizes(name, settings):
    """What `judge` finds for one prompt and for two, for each group size."""
    return {
        "one": [judge(name, size, P.unsqueeze(0)) for size in settings["sizes"]],
        "two": [judge(name, size, torch.stack([P, SOLVED])) for size in settings["sizes_two_prompts"]]}


def judge(name, size, policies):
    """One estimator over all batches with `size` answers to each prompt. policies: (Q, 3), the answers' probabilities.

    Returns {"size", "gradient": its expectation, what `compare` finds, "variance": summed over the logits}. The true
    gradient is that of J, the mean of E r over prompts: p (r - E r) / Q.
    """
    expected = policies @ R  # (Q,)
    true = policies * (R - expected.unsqueeze(1)) / len(policies)  # (Q, 3)
    mean, square = torch.zeros_like(true), 0.0
    groups = [list(all_groups(probs, size)) for probs in policies]
    for parts in itertools.product(*groups):
        drawn = torch.tensor([group for group, _ in parts])  # (Q, G)
        chance = math.prod(chance for _, chance in parts)
        gradient = gradient_of(name, drawn, policies, expected)
        mean += chance * gradient
        square += chance * gradient.square().sum().item()
    found = {"size": size, "gradient": mean.tolist(), **compare(mean, true)}
    return found | {"variance": square - mean.square().sum().item()}


def gradient_of(name, drawn, policies, expected):
    """Minus the gradient of policy_loss on one batch, with respect to the logits: (Q, G) answers -> (Q, 3)."""
    size, rewards = drawn.shape[1], R[drawn]
    advantages = ESTIMATORS[name][1](rewards.view(-1), expected.repeat_interleave(size), size)  # (B,)
    kept = torch.ones_like(drawn, dtype=torch.bool)
    if name == "rloo_kept":
        # The mean is then over the answers of the other groups.
        kept = kept & grpo.varies(rewards)
    logits = policies.log().requires_grad_(True)
    logprobs = logits.log_softmax(1).gather(1, drawn).view(-1, 1)  # (B, 1)
    loss, _ = ppo.policy_loss(logprobs, logprobs, advantages.unsqueeze(1), kept.view(-1, 1))
    return -torch.autograd.grad(loss, logits)[0]


# ---- the KL ----


def compare_kl(world, logits, ref):
    """For k1, k2, k3 in three places: the expected gradient beside those of KL(p || ref) and KL(ref || p): rows.

    "loss": the estimate's own gradient, summed over an answer's tokens. "reward": the score function, estimate times
    grad log p. "both": their sum, the gradient of the estimate times the ratio. The answers come from p, always.
    """
    ref_logprobs, old = world.logprobs(ref), world.logprobs(logits)
    probs = old.sum(1).exp()  # (N,)
    targets = {
        KL: world.gradient(lambda logprobs: divergence(logprobs, ref_logprobs), logits),
        REVERSE: world.gradient(lambda logprobs: divergence(ref_logprobs, logprobs), logits)}
    rows = []
    for kind in ("k1", "k2", "k3"):
        estimate = kl_estimate(old, ref_logprobs, kind).sum(1)  # (N,)
        in_loss = world.gradient(
            lambda logprobs: (probs * kl_estimate(logprobs, ref_logprobs, kind).sum(1)).sum(), logits)
        in_reward = world.gradient(lambda logprobs: (probs * estimate * logprobs.sum(1)).sum(), logits)
        for place, gradient in (("loss", in_loss), ("reward", in_reward), ("both", in_loss + in_reward)):
            found = {name: compare(gradient, target) for name, target in targets.items()}
            rows.append({
                "kind": kind, "place": place, "gradient": gradient.flatten().tolist(),
                "is": name_gradient(gradient, found), "found": found})
    return rows


def name_gradient(gradient, found):
    """"0", the divergence whose gradient this is, or "neither"."""
    if gradient.norm() < 1e-12:
        return "0"
    same = [name for name, one in found.items() if one["bias"] < 1e-9]
    return f"grad {same[0]}" if same else "neither"


# ---- results ----


def tables(results):
    """Bias, variance, length bias, KL."""
    bias, kl = results["bias"], results["kl"]
    return {
        "Bias |E g - g| / |g| of the gradient, and cosine of E g and g: one prompt, G answers": bias_rows(bias, "one"),
        "The same for batches of two prompts, one of them nearly solved": bias_rows(bias, "two"),
        "Variance, summed over the logits; per answer: times G, for E g made as long as g; one prompt":
            variance_rows(bias),
        "Answers of unequal length, whose reward does not depend on length: cosine of the expected update to the true "
        "gradient of E r - beta KL; changes along a step of length 1 (beta 0)": rule_rows(results["rules"]),
        "Mean length in tokens along the expected updates of large groups, all equally long":
            path_rows(results["paths"]),
        "KL, answers of one token: the expected gradient of each estimate": kl_rows(kl["one"], True),
        "KL, answers of several tokens, an estimate for each token": kl_rows(kl["several"], False)}


def number(value, digits=3):
    """As a table shows it, without a minus before zero; None stays None."""
    return None if value is None else f"{round(value, digits) + 0:.{digits}f}"


def bias_rows(bias, prompts):
    rows = []
    for name, found in bias.items():
        row = {"estimator": ESTIMATORS[name][0]}
        row |= {f"bias, G = {one['size']}": number(one["bias"]) for one in found[prompts]}
        rows.append(row | {f"cosine, G = {one['size']}": number(one["cosine"], 4) for one in found[prompts]})
    return rows


def variance_rows(bias):
    rows = []
    for name, found in bias.items():
        row = {"estimator": ESTIMATORS[name][0]}
        row |= {f"variance, G = {one['size']}": number(one["variance"], 4) for one in found["one"]}
        rows.append(row | {f"per answer, G = {one['size']}": number(per_answer(one)) for one in found["one"]})
    return rows


def per_answer(one):
    """G times the variance of an estimator that is scaled to the length of the true gradient."""
    return one["size"] * one["variance"] / one["scale"] ** 2


def rule_rows(rules):
    columns = {
        "cosine": "cosine, beta 0", "cosine_kl": "cosine with KL", "wrong": "change of length, wrong answers",
        "right": "change of length, right answers", "short": "change of log p, short wrong answer",
        "long": "change of log p, long wrong answer"}
    rows = []
    for name, one in rules.items():
        rows.append({"weights": RULES[name], **{title: number(one[key]) for key, title in columns.items()}})
    return rows


def path_rows(paths):
    rows = []
    for name, points in paths.items():
        for point in (points[0], points[len(points) // 2], points[-1]):
            row = {"weights": RULES[name], "step": point["step"], "share of right answers": number(point["share"])}
            rows.append(row | {f"length of {kind} answers": number(point[kind], 2) for kind in ("wrong", "right")})
    return rows


def kl_rows(rows, with_gradient):
    shown = []
    for row in rows:
        line = {"estimate": row["kind"], "in the": row["place"], "it is": row["is"]}
        if with_gradient:
            line["gradient"] = ", ".join(number(value, 4) for value in row["gradient"])
        for name, one in row["found"].items():
            line |= {f"cosine to grad {name}": number(one["cosine"], 4), f"error to grad {name}": number(one["bias"])}
        shown.append(line)
    return shown


def draw(results):
    """Variance per answer, bias, the length of answers, and how far each KL term is from the gradient of the KL."""
    fig, ((variance, bias), (length, kl)) = show.figure(2, 2, width=12.5, height=9.5)
    draw_variance(variance, results["bias"])
    draw_bias(bias, results["bias"])
    series = {}
    for name, label in (("grpo", "GRPO"), ("dr_grpo", "Dr. GRPO")):
        points = results["paths"][name]
        steps = [point["step"] for point in points]
        for kind in ("wrong", "right"):
            series[f"{label}, {kind} answers"] = (steps, [point[kind] for point in points])
    show.curves(
        length, series, xlabel="expected updates, all equally long", ylabel="mean length (tokens)",
        title="Length of answers; the reward does not depend on it")
    names = [f"{row['kind']}, {row['place']}" for row in results["kl"]["one"]]
    series = {}
    for world, title in (("one", "answers of one token"), ("several", "several tokens")):
        series[title] = [row["found"][KL]["bias"] for row in results["kl"][world]]
    show.grouped_bars(
        kl, names, series, xlabel="|g - grad KL| / |grad KL|", title="KL terms: error to the gradient of KL(p || ref)")
    return fig


def draw_variance(ax, bias):
    series = {}
    for name, label in (
            ("raised", "REINFORCE, rewards + 1"), ("dr_grpo", "RLOO and Dr. GRPO"), ("grpo", "GRPO and PPO, whitened"),
            ("baseline", "REINFORCE, baseline E r"), ("reinforce", "REINFORCE")):
        points = bias[name]["one"]
        series[label] = ([one["size"] for one in points], [per_answer(one) for one in points])
    show.curves(
        ax, series, xlabel="answers to one prompt, G", ylabel="variance per answer",
        title="Variance per answer, gradients made equally long")
    ax.set_ylim(bottom=0)
    # In the free space between the upper and the lower lines.
    ax.legend(frameon=False, handlelength=3, loc="center right", bbox_to_anchor=(1, 0.64))


def draw_bias(ax, bias):
    """At the largest group size that was measured with one prompt and with two."""
    size = min(bias["rloo"]["one"][-1]["size"], bias["rloo"]["two"][-1]["size"])
    series = {"one prompt": [], "two prompts, one nearly solved": []}
    for found in bias.values():
        for values, prompts in zip(series.values(), ("one", "two")):
            values += [one["bias"] for one in found[prompts] if one["size"] == size]
    names = [ESTIMATORS[name][0] for name in bias]
    show.grouped_bars(
        ax, names, series, xlabel="|E g - g| / |g|", title=f"Bias of the expected gradient, G = {size}")
