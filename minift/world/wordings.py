"""How exercises are worded: wordings.json has, for each kind of exercise, questions with {fields} of a told scene.

No wording is that of an instruction template (data/instructions): those are kept for tuning and judging.
"""

from pathlib import Path

from minift.core.files import read_json

# kind of exercise -> its wordings
WORDINGS = read_json(Path(__file__).with_name("wordings.json"))
