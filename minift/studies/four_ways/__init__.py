"""Four ways of making instruction data, compared at the same number of training tokens.

`python -m minift.studies.four_ways --out runs/ways`: `rows` makes the data of each way, `tuning` tunes and
scores a model on it, `report` draws the table and the picture.
"""
