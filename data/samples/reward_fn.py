"""An example for `python -m minift ppo --reward-fn data/samples/reward_fn.py:score`: wishes, written down as points.

The function gets the prompts as they stand in the data file, and the responses as texts; it returns one finite number for
each response. Beware of what you wish for: the policy finds the cheapest way to please.
"""

GLAD = ("glad", "happy", "merry", "proud", "cheerful", "delighted", "thankful", "grateful", "thrilled", "laughed", "smiled")


def score(prompts, responses):
    """A point for each wish that comes true: a whole story, a last sentence with a glad word, and no loose end."""
    return [points(response) for response in responses]


def points(response):
    sentences = [sentence for sentence in response.split(".") if sentence.strip()]
    whole = min(len(sentences), 6) / 6                                      # six sentences are enough
    glad = bool(sentences) and any(word in sentences[-1] for word in GLAD)
    ended = response.rstrip().endswith((".", '."'))
    return whole + glad + ended
