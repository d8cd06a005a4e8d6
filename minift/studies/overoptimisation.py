"""Over-optimisation: the learned score climbs, the gold score turns. Exact, and as PPO, RLOO, GRPO and DPO train it.

Gao et al. 2022, "Scaling Laws for Reward Model Overoptimization": figure 1 and the forms of section 3.1; Coste et al.
2023, "Reward Model Ensembles Help Mitigate Overoptimization", section 3. The world is that of repeats.py. The exact
path is ref * exp(learned / beta) / Z for falling beta: the best that any method can do with this reward at each KL.
Left out: reward models of several sizes.
"""

import torch

from minift import show
from minift.evaluation import exact
from minift.show.pictures import COLOURS
from minift.studies import interpolate, mean_and_std, show_interval, show_spread
from minift.studies.overoptimisation_trained import METHODS
from minift.studies.repeats import World

SETTINGS = {
    "seeds": tuple(range(10)), "penalties": (2.0, 1.0), "pairs": 1000, "many_pairs": 30_000, "members": 5,
    "trained_seeds": (0, 1, 2), "betas": (1.0, 0.5, 0.25, 0.1), "iterations": 60, "batch_size": 256, "steps": 200,
    "many_steps": 470}
QUICK = {
    "seeds": (0,), "pairs": 200, "many_pairs": 400, "members": 2, "trained_seeds": (0,), "betas": (0.5,),
    "iterations": 4, "batch_size": 32, "steps": 4, "many_steps": 4}
# From hardly any optimisation to nearly the best answer alone.
BETAS = [20 / 1.14 ** power for power in range(67)]
NUMBERS = [2 ** power for power in range(14)]


def measure(cells, settings):
    """{"paths": name -> for each seed a path, "forms", "trained": method -> runs of points with "away"}.

    Each run is compared with the exact path of the reward model that is fitted to the same pairs.
    """
    paths, forms, trained = {}, [], {}
    for seed in settings["seeds"]:
        for name, path in cells(f"paths-{seed}", all_paths, seed, settings).items():
            paths.setdefault(name, []).append(path)
        forms.append(fit_forms({name: seeds[-1] for name, seeds in paths.items()}))
    for seed in settings["trained_seeds"]:
        worlds = {size: World(seed, pairs=settings[size]) for size in ("pairs", "many_pairs")}
        exact_paths = {"pairs": MAIN, "many_pairs": more_pairs(settings)}
        for name, (method, size) in METHODS.items():
            exact_path = paths[exact_paths[size]][settings["seeds"].index(seed)]
            for beta in settings["betas"]:
                points = cells(f"{name}-{beta:g}-{seed}", method, worlds[size], beta, settings)
                points = [point | {"away": away(point, exact_path)} for point in points]
                start = exact.expected_reward(worlds[size].ref, worlds[size].repeats)
                run = {"seed": seed, "beta": beta, "ref_repeats": start, "points": points}
                trained.setdefault(name, []).append(run)
    return {"paths": paths, "forms": forms, "trained": trained}


# ---- exact ----

MAIN, BEST_OF_N, MILD = "counts only, 2 a repeat", "best of n", "counts only, 1 a repeat"
# The part of the main path that the trained methods reach.
MODERATE = f"{MAIN}, beta from 0.1"
FORMS = {MAIN: "d (a - b log d)", MODERATE: "d (a - b log d)", BEST_OF_N: "d (a - b d)"}


def more_pairs(settings):
    return f"counts only, {settings['many_pairs']:,} pairs"


def all_paths(seed, settings):
    """Name -> path, for one seed: the flawed reward, best of n, a milder penalty, more pairs, and what may help."""
    world = World(seed, settings["penalties"][0], pairs=settings["pairs"])
    learned = world.learn()
    mild = World(seed, settings["penalties"][1], pairs=settings["pairs"])
    many = World(seed, settings["penalties"][0], pairs=settings["many_pairs"])
    ensembles = combine(world.learn_ensemble(settings["members"]))
    return {
        MAIN: follow(world, learned),
        BEST_OF_N: [world.judge(exact.best_of_n(world.ref_logprobs, learned, n), learned) for n in NUMBERS],
        MILD: follow(mild, mild.learn()),
        more_pairs(settings): follow(many, many.learn()),
        "counts and repeats": follow(world, world.learn(see_repeats=True)),
        **{f"ensemble, {rule}": follow(world, scores) for rule, scores in ensembles.items()}}


def combine(members):
    """Rule -> the score of each answer (N,), from those of an ensemble's members (n, N): Coste et al. 2023, section 3.

    The variance divides by n; its weight is 1.
    """
    mean = members.mean(0)
    return {
        "mean": mean, "minimum": members.min(0).values,
        "mean - variance": mean - members.var(0, unbiased=False)}


def follow(world, learned):
    """The path of the best policies for this reward, from a large beta to a small one."""
    return [world.judge(exact.optimum(world.ref_logprobs, learned, beta), learned) for beta in BETAS]


def fit_forms(paths):
    """Gao's forms of the gold score, with d = sqrt(KL): d (a - b log d) on the path, d (a - b d) for best of n.

    They are fitted by least squares to the points of the paths, which are equal steps of log beta and of log n.
    """
    found, moderate = {}, len([beta for beta in BETAS if beta >= 0.1])
    parts = {MAIN: paths[MAIN], MODERATE: paths[MAIN][:moderate], BEST_OF_N: paths[BEST_OF_N]}
    for name, path in parts.items():
        points = [point for point in path if point["root_kl"] > 0.05]
        d, gold = (torch.tensor([point[key] for point in points], dtype=torch.float64) for key in ("root_kl", "gold"))
        bend = d if name == BEST_OF_N else d.log()
        columns = torch.stack([d, -d * bend], 1)  # (points, 2)
        solution = torch.linalg.lstsq(columns, gold.unsqueeze(1)).solution
        error = (gold - (columns @ solution).squeeze(1)).square().sum()
        found[name] = {
            "a": solution[0].item(), "b": solution[1].item(),
            "r_squared": (1 - error / (gold - gold.mean()).square().sum()).item()}
    return found


def gold_at(path, root_kl):
    """The gold score of a path at a sqrt(KL); None beyond its ends."""
    return interpolate(path, "root_kl", root_kl, "gold")


def away(point, path):
    """How far a trained policy's gold score is from that of the exact path with the same KL."""
    there = gold_at(path, point["root_kl"])
    return None if there is None else point["gold"] - there


# ---- results ----

# A trained policy is on the exact path if its gold score is at most so far away, in standard deviations.
NEAR = 0.15
ROOT_KL, SCORE = "sqrt(KL)", "score (standard deviations)"


def peak(path):
    return max(path, key=lambda point: point["gold"])


def turns(path):
    """Whether the gold score ends more than .1 below its peak."""
    return path[-1]["gold"] < peak(path)["gold"] - 0.1


def tables(results):
    """What the exact paths do; what helps; how well Gao's forms fit; how far trained policies are from the path."""
    forms = []
    for name, form in FORMS.items():
        row = {"path": name, "form": form}
        for key, title in (("a", "a"), ("b", "b"), ("r_squared", "R squared")):
            row[title] = show_spread([one[name][key] for one in results["forms"]])
        row["smallest R squared"] = f"{min(one[name]['r_squared'] for one in results['forms']):.2f}"
        forms.append(row)
    paths = results["paths"]
    others = {name: seeds for name, seeds in paths.items() if name not in (MAIN, BEST_OF_N, MILD)}
    return {
        "Gold score along ref * exp(learned / beta) / Z, in standard deviations (mean ± std over seeds)":
            [path_row(name, seeds) for name, seeds in paths.items()],
        "What helps: gold score less that of one model with 2 a repeat, same seed (mean, 95 % interval)":
            [gain_row(name, seeds, paths[MAIN]) for name, seeds in others.items()],
        "Gao's forms of the gold score, d = sqrt(KL)": forms,
        "Trained policies: gold score less that of the exact path at equal KL":
            [trained_row(name, runs) for name, runs in results["trained"].items()]}


def path_row(name, seeds):
    """The peak is early stopping, for each seed by its own gold score; one setting for all seeds is the KL penalty."""
    moments = [[point["gold"] for point in moment] for moment in zip(*seeds, strict=True)]
    best = max(range(len(moments)), key=lambda i: sum(moments[i]))
    setting = f"n = {NUMBERS[best]}" if name == BEST_OF_N else f"beta = {BETAS[best]:.2f}"
    return {
        "reward": name, "turns": f"{sum(map(turns, seeds))} of {len(seeds)}",
        "gold, peak": show_spread([peak(path)["gold"] for path in seeds]),
        "sqrt(KL) there": show_spread([peak(path)["root_kl"] for path in seeds]),
        "one setting for all": setting, "gold there": show_spread(moments[best]),
        "gold, end": show_spread(moments[-1]), "learned, end": show_spread([path[-1]["learned"] for path in seeds])}


def gain_row(name, seeds, main):
    """What a reward model gains over the flawed one of the same seed: peak, end, and at equal KL after the peak."""
    pairs = list(zip(seeds, main, strict=True))
    after = [gain for gain in map(gain_after_peak, seeds, main) if gain is not None]
    return {
        "reward": name, "peak": show_interval([peak(path)["gold"] - peak(other)["gold"] for path, other in pairs]),
        "end": show_interval([path[-1]["gold"] - other[-1]["gold"] for path, other in pairs]),
        "after the peak, equal KL": show_interval(after) if after else None}


def gain_after_peak(path, other):
    """The mean of gold, path less other, at the KLs of `other` after its peak; None if `path` reaches none of them."""
    gains = []
    for point in other[other.index(peak(other)) + 1:]:
        there = gold_at(path, point["root_kl"])
        if there is not None:
            gains.append(there - point["gold"])
    return sum(gains) / len(gains) if gains else None


def trained_row(name, runs):
    """How far are runs from the exact path, at their ends and on the way, and how often do their answers repeat?"""
    last = [run["points"][-1] for run in runs]
    ends = [point["away"] for point in last if point["away"] is not None]
    before = []
    for run in runs:
        before += [abs(point["away"]) for point in run["points"][:-1] if point["away"] is not None]
    near = sum(abs(value) <= NEAR for value in ends)
    return {
        "method": name, "largest sqrt(KL)": f"{max(point['root_kl'] for point in last):.2f}",
        "at the end, mean": show_spread(ends) if ends else None, f"within {NEAR}": f"{near} of {len(last)}",
        "largest": text_of(max(map(abs, ends), default=None)), "largest on the way": text_of(max(before, default=None)),
        "repeats, at first": show_spread([run["ref_repeats"] for run in runs]),
        "at the end": show_spread([point["repeats"] for point in last])}


def text_of(value):
    return None if value is None else f"{value:.2f}"


def draw(results):
    """Against sqrt(KL): gold and learned score, exact and trained; distance from the exact path; what may help."""
    fig, ((left, right), (below, helps)) = show.figure(2, 2, width=12.5, height=9.5)
    paths, trained = results["paths"], results["trained"]
    series = {}
    for name, label in ((MAIN, "exact path"), (BEST_OF_N, "best of n")):
        series |= {f"{key}, {label}": mean_path(paths[name], key) for key in ("gold", "learned")}
    show.curves(left, series, xlabel=ROOT_KL, ylabel=SCORE, title="exact: mean of all seeds at each beta or n")
    # The runs of one seed that learn from its 1,000 pairs, beside their path.
    first, series = paths[MAIN][0], {}
    for key in ("gold", "learned"):
        series[f"{key}, exact path"] = ([point["root_kl"] for point in first], [point[key] for point in first])
    show.curves(right, series, xlabel=ROOT_KL, ylabel=SCORE, title="trained: ends of the runs of one seed, each beta")
    for place, (name, (_, size)) in enumerate(METHODS.items()):
        ends = [run["points"][-1] for run in trained[name]]
        mine = [run["points"][-1] for run in trained[name] if run["seed"] == trained[name][0]["seed"]]
        if size == "pairs":
            for key, label in (("gold", name), ("learned", None)):
                draw_points(right, place, mine, key, label)
        draw_points(below, place, ends, "away", name)
    right.legend(frameon=False, loc="upper left")
    # The distance of all runs; the band is what counts as near.
    below.axhspan(-NEAR, NEAR, color="#dddddd", label=f"within {NEAR}", zorder=0)
    below.grid(alpha=0.25)
    below.legend(frameon=False, loc="upper left")
    below.set(xlabel=ROOT_KL, ylabel="gold score less that of the exact path")
    below.set_title("trained: ends of all runs, at equal KL", fontsize=11)
    below.spines[["top", "right"]].set_visible(False)
    series = {name: mean_path(seeds, "gold") for name, seeds in paths.items() if name != BEST_OF_N}
    show.curves(helps, series, xlabel=ROOT_KL, ylabel="gold score", title="what may help (exact, mean of all seeds)")
    return fig


def draw_points(ax, place, points, key, label):
    """Hollow marks, one kind and colour for each method, so that several can lie on one place."""
    colour = COLOURS[(place + 2) % len(COLOURS)]
    ax.plot(
        [point["root_kl"] for point in points], [point[key] for point in points], "os^Dv"[place], color=colour,
        fillstyle="none", markersize=6 + 2 * (place == 0), label=label)


def mean_path(seeds, key):
    """(mean sqrt(KL), mean score) over seeds, beta by beta."""
    found = []
    for name in ("root_kl", key):
        found.append([mean_and_std([one[name] for one in moment])["mean"] for moment in zip(*seeds, strict=True)])
    return tuple(found)
