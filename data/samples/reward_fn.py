"""An example for `python -m minift ppo --reward-fn data/samples/reward_fn.py:score`: wishes, written down as points.

The function gets the prompts as they stand in the data file, and the responses as texts; it returns one finite
number for each response. Beware of what you wish for: with a point for every glad word, whatever stands around it,
the policy soon writes two glad words and stops. So the glad end counts in a whole story only.
"""

GLAD = "glad happy merry proud cheerful delighted thankful grateful thrilled laughed smiled".split()


def score(prompts, responses):
    """One number for each response: up to 3 points for a whole story, and 2 more when it ends gladly."""
    return [points(response) for response in responses]


def points(response):
    sentences = [sentence for sentence in response.split(".") if sentence.strip()]
    whole = min(len(sentences), 7) / 7
    glad = bool(sentences) and any(word in sentences[-1] for word in GLAD)
    return 3 * whole + 2 * (glad and whole == 1)
