"""The command line: one module a verb, with its options and its work.

A verb's module has HELP (one line), EXAMPLES (commands that work in the root of the repository), add_options(parser)
and run(options). Work that is long has a module of its own. PyTorch takes more than a second to load, so modules of
verbs import what needs it inside of run: `--help` and a wrong option answer at once.
"""
