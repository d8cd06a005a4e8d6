"""Which mistake a failed law usually stands for: what `check` says under it.

test -> {part of the message: the mistake}; the part "" stands for any message. Left out: laws that say it themselves.
"""

HINTS = {
    # tokens
    "test_merge_works_from_left_to_right": {
        "": "an index that moves on by one after a merge (it must skip both halves), or a last token that is lost"},
    "test_ties_go_to_the_smaller_pair": {
        "": "max() over counts alone: of equal counts it takes the first met, not the smaller pair"},
    # log-probabilities
    "test_logprobs_by_hand": {
        "": "the shift by one: logits[t - 1] speak about token t, so drop the last logits and the first token"},
    "test_logprobs_of_huge_and_half_precision_logits": {
        "": "log(softmax(x)) instead of log_softmax(x), or arithmetic in the logits' own half precision"},
}
