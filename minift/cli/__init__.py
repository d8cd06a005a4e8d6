"""The command line: one module for each verb, with its options and its work.

The first line of a verb's module is its line in --help. The module has EXAMPLES (commands that work in the root of the
repository), add_options(parser) and run(options). Longer work has a module of its own. PyTorch takes more than a second
to load, so a verb imports inside run what needs it: `--help` and errors about options appear at once.
"""
