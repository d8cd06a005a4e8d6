"""The embedded toy world, drawn from seeds: what the base model reads and what it is tuned and judged on.

Four words. A *scene* is what happens in one story: who, where, with which animal and thing, what goes wrong. A
*telling* is a scene in sentences; each telling of a scene differs. A *fact* is what one can ask of every telling: the
child's name, the place, the colour. An *exercise* is a request about a told scene, with its right answer.

In reading order: lexicon (words), scenes (scenes and tellings), facts; corpus and practice (text for pre-training),
exercises, tasks and instructions (rows for tuning), labelled (sets for classifiers), domains (text for continued
pre-training), endings (open stories for lessons on preferences); rubric and checker (they judge stories and answers),
recipes and train_recipe (how data/base and data/encoder were made). Left out: any text that a person has written.
"""
