"""The laboratory: studies that compare alignment algorithms with a known truth."""

from minift.cli import options as add

NAMES = (
    "estimators", "over-optimisation", "collapse", "rlvr", "frontier", "exact-frontier", "chosen", "ppo-details",
    "reward-models")
EXAMPLES = ["lab estimators --quick --out runs/estimators"]


def add_options(parser):
    parser.add_argument("name", metavar="NAME", choices=NAMES, help=f"one of: {', '.join(NAMES)}")
    parser.add_argument("--out", metavar="DIR", help="where everything goes (default runs/lab/NAME)")
    add.flag(parser, "--quick", "a rehearsal of at most a minute, which shows no effect")


def run(options):
    """Run a study, or go on with one that was stopped."""
    # The imports stand here, so that --help answers without loading PyTorch.
    from pathlib import Path

    from minift.studies.lab import run_study
    out = Path(options.out or f"runs/lab/{options.name}")
    run_study(options.name, out, options.quick)
    print((out / "table.md").read_text(encoding="utf-8"))
    print(f"written to {out}")
