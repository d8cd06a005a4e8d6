"""The command line: one module a verb, with its options and its work."""
