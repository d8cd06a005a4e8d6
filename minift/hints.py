"""Which mistake a failed law usually stands for: what `check` says under it.

test -> {part of the failed line or its message: the mistake}; the part "" stands for any. Left out: laws that say
it themselves.
"""

HINTS = {
    # tokens
    "test_merge_works_from_left_to_right": {
        "": "an index that moves on by one after a merge (it must skip both halves), or a last token that is lost"},
    "test_ties_go_to_the_smaller_pair": {
        'b"xy": 3': "the counts of the words are not used: a pair in a word that occurs n times counts n times",
        "": "max() over counts alone: of equal counts it takes the first met, not the smaller pair"},
    # log-probabilities
    "test_logprobs_by_hand": {
        "": "the shift by one: logits[t - 1] speak about token t, so drop the last logits and the first token"},
    "test_logprobs_of_huge_and_half_precision_logits": {
        "": "log(softmax(x)) instead of log_softmax(x), or arithmetic in the logits' own half precision"},
}
