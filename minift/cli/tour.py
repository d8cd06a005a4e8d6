"""The whole journey: one model goes through every kind of fine-tuning, on the embedded world."""

from minift.cli import options as add

EXAMPLES = ["tour --quick --out runs/quick"]


def add_options(parser):
    parser.add_argument("--out", metavar="DIR", default="runs/tour", help="where everything goes (default runs/tour)")
    add.option(parser, "--seed", "N", add.WHOLE, 0, "of all random numbers")
    parser.add_argument("--seeds", metavar="N", type=add.WHOLE, nargs="+", help="several tours, with mean and spread")
    parser.add_argument("--stages", metavar="NAME", nargs="+", help="only these stages, upon what --out holds already")
    add.flag(parser, "--quick", "a rehearsal: every stage runs, none learns much")
    add.flag(parser, "--resume", "keep the stages that are finished in --out")


def run(options):
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift import tour
    tour.run(
        out=options.out, seed=options.seed, seeds=options.seeds, stages=options.stages, quick=options.quick,
        resume=options.resume)
