"""Open a lesson of the course in Jupyter, or list the lessons."""

from minift.cli import options as add

EXAMPLES = ["lesson --list"]


def add_options(parser):
    parser.add_argument("number", type=add.WHOLE, nargs="?", help="of the lesson")
    parser.add_argument("jupyter", nargs="*", metavar="-- OPTION", help="for Jupyter, such as -- --no-browser")
    add.flag(parser, "--list", "the lessons and their numbers")


def run(options):
    # The imports stand here, so that --help answers without loading PyTorch.
    from minift.learn.lesson import list_lessons, open_lesson
    if options.list or options.number is None:
        list_lessons()
    else:
        open_lesson(options.number, options.jupyter)
