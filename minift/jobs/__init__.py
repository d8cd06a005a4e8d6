"""What the command line does: one small module for each kind of work. Each job takes the parsed options of its verb."""
