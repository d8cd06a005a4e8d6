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
    # masked language models and classifiers
    "test_loss_of_a_worked_example": {
        "1.7482": "a shift by one as in a decoder: here each place predicts itself",
        "0.69314": "a mean over all places: only the selected ones count"},
    "test_other_logits_do_not_matter": {
        "changed.grad": "logits of places that nobody asks for are computed with (0 * NaN is NaN): pick the selected "
                        "rows of logits first"},
    "test_nothing_selected_is_zero": {
        "nan": "a mean over nothing is 0 / 0: take the sum, and divide it by the count, but by 1 at least"},
    "test_pooling_by_hand": {
        "difference: 2.0": "the padding is averaged in: attention_mask says which tokens are real",
        '"mean"': "padding is left out of the sum, but not of the count: divide by the number of real tokens",
        '"cls"': "column 0 may be padding, on the left: look for the first real token of each row"},
    # log-probabilities
    "test_logprobs_by_hand": {
        "": "the shift by one: logits[t - 1] speak about token t, so drop the last logits and the first token"},
    "test_logprobs_of_huge_and_half_precision_logits": {
        "": "log(softmax(x)) instead of log_softmax(x), or arithmetic in the logits' own half precision"},
}
