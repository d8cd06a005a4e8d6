"""Which mistake a failed law usually stands for: what `check` says under it.

test -> {part of the failed line or its message: the mistake}; the part "" stands for any. Left out: laws that say
it themselves.
"""

HINTS = {
    # tokens
    "test_merge_works_from_left_to_right": {
        "merge([1, 1, 1, 2, 1, 1]": "an index that moves on by one after a merge: it must skip both halves",
        "merge([2, 1]": "the last token is lost where no merge takes it"},
    "test_ties_go_to_the_smaller_pair": {
        'b"xy": 3': "the counts of the words are not used: a pair in a word that occurs n times counts n times",
        "": "max() over counts alone: of equal counts it takes the first met, not the smaller pair"},
    # masked language models and classifiers
    "test_loss_of_a_worked_example": {
        "1.7482": "a shift by one as in a decoder: here each place predicts itself",
        "0.69314": "a mean over all places: only the selected ones count"},
    "test_other_logits_do_not_matter": {
        "torch.equal(loss, mlm_loss(": "logits of places that nobody asks for reach it, by a shift or as 0 * NaN: "
                                       "pick the selected ones",
        "changed.grad": "logits of places that nobody asks for are computed with (0 * NaN is NaN): pick the selected "
                        "rows of logits first"},
    "test_nothing_selected_is_zero": {
        "nan": "a mean over nothing is 0 / 0: take the sum, and divide it by the count, but by 1 at least"},
    "test_pooling_by_hand": {
        "difference: 2.0": "the padding is averaged in: attention_mask says which tokens are real",
        '"mean"': "padding is left out of the sum, but not of the count: divide by the number of real tokens",
        '"cls"': "column 0 may be padding, on the left: look for the first real token of each row"},
    # the exact world
    "test_the_worked_optimum": {
        "0.866813": "the reference is left out: each answer keeps its weight ref, times exp(reward / beta)",
        "0.661782": "rewards are multiplied by beta; a low price of KL must make them count more, so divide",
        "0.88938": "the reference comes as logarithms: log ref + reward / beta, or ref * exp(reward / beta)",
        "3.69452": "not divided by Z: the probabilities must sum to 1"},
    "test_best_of_n_by_brute_force": {
        "": "ties: answers of equal reward share one level's probability, in proportion to ref"},
    # log-probabilities
    "test_logprobs_by_hand": {
        "they differ by": "arithmetic in float32: a float64 input is worth a float64 result",
        "shape (1, 2, 1)": "gather keeps the dimension of the vocabulary, of size 1; it has to go",
        "-9.00025": "the softmax runs over the tokens; it belongs over the vocabulary, the last dimension",
        "": "the shift by one: logits[t - 1] speak about token t, so drop the last logits and the first token"},
    "test_kl_estimates_by_hand": {
        "0.306853": "a sign: d = log p - log p_ref, and k3 is exp(-d) - 1 + d",
        "0.480453": "k2 is the half of d squared"},
    "test_response_logprobs": {
        "1.81928": "the shift by one: the state at token t - 1 speaks about token t",
        "0.66518": "the logits are not divided by the temperature"},
    "test_response_logprobs_never_make_all_logits": {
        "max(sizes)": "the head is given too many rows at once: take the response tokens' states first, then split "
                      "them so that rows times V is at most chunk_logits",
        "2 * n": "the chunks' logits are kept for the backward pass; checkpoint computes them a second time instead"},
    "test_logprobs_of_huge_and_half_precision_logits": {
        "": "log(softmax(x)) instead of log_softmax(x), or arithmetic in the logits' own half precision"},
    "test_labels_are_the_ids_that_the_model_wrote": {
        "[0, 1, 2, 3, 1] ==": "the prompt is learned too: the mask was not used",
        "DID NOT RAISE": "zip() ends silently with the shorter list; compare the lengths first"},
    # real models
    "test_rows_are_put_right_and_back": {
        "[0.0, 2.0, 4": "the heads are mixed: each d_head rows are a head of their own",
        "[0.0, 1.0": "no row has moved: a reshape alone keeps the order, a transpose stands between two",
        "permute_rows(unpermute_rows": "the way back instead of the way there: see a head's rows as (d_head / 2, 2), then swap"},
    # the transformer
    "test_rotary_turns_the_half_split_pairs": {
        "-1.14264": "the pairs are neighbours (0, 1), (2, 3); here the partner of i is i + E/2",
        "": "a sign, or sine and cosine exchanged: (a, b) becomes (a cos - b sin, b cos + a sin)"},
    "test_who_sees_whom": {
        "visible(2, 5": "the new tokens are the last of all: the first of them stands at n_total - n_new, not at 0",
        "True) == False": "a token sees what it must not: a later one (is the diagonal off by one?), padding, or "
                          "another segment",
        "False) == True": "something is hidden that should be seen; does every token see itself, even a pad?"},
    # pre-training
    "test_loss_is_the_mean_over_next_tokens": {
        "": "the shift by one: the logits at t speak about the token at t + 1; nothing is learned of the first token"},
    "test_ignored_labels_are_not_learned": {
        "nan": "a mean over nothing is 0 / 0: take the sum, and divide it by the count, but by 1 at least",
        "": "labels of -100 are learned, or counted in the mean"},
    "test_packed_rows_lose_what_single_rows_lose": {
        "7 == 7 and 41.51": "segment_ids or position_ids do not reach the model"},
    "test_padding_changes_nothing": {"": "attention_mask does not reach the model, or labels of -100 are learned"},
    "test_learning_rate_follows_warmup_and_cosine": {
        "[0.25, 0.75": "the warm-up starts at 0: at step 0 the rate is 0, at step 2 of 4 it is half of lr",
        "56829700264]": "from step steps on the rate stays at min_lr; the cosine alone would rise again",
        "1.0, 0.5, 0.1, 0.1]": "the cosine goes down to min_lr, so its height is lr - min_lr",
        "1.0, 0.1, 0.1]": "half a cosine: 1 + cos falls from 2 to 0, so it takes a factor of 1/2",
        "": "the cosine has to start after the warm-up: its progress is (step - warmup) / (steps - warmup)"},
    "test_perplexity_is_over_tokens_and_not_over_texts": {
        "4.48168": "a mean of the texts' means: a short text weighs as much as a long one; add up, then divide once",
        "5.05367": "a mean of the texts' perplexities; add up nats and tokens first, then divide once"},
    "test_perplexity_of_guessing_is_the_number_of_choices": {"": "exp() of more than 709 is beyond a float"},
    # LoRA
    "test_worked_example": {
        "delta()": "the product is B A, (out, R) times (R, in), not its transpose",
        "[10.0, 13.0]": "the branch lacks the factor alpha / rank",
        "37.0 != 19": "the change is there twice: merged, the weight holds it already"},
    "test_scale_is_alpha_over_rank": {
        "'shape' do not match": "the product is B A, (out, R) times (R, in), not its transpose",
        "delta()": "the factor is alpha / rank, once; with alpha alone a higher rank is also a stronger change"},
    "test_dropout_is_on_the_branch_only": {
        "all_dropped.train()(x), base)": "dropout is for the branch's input alone: the weight sees all of x"},
    "test_switched_off_it_is_the_base": {
        "layer(x), torch.eye(2": "not enabled, the output is the base's, with .original for its weight while merged"},
    "test_without_lora_is_the_base_exactly": {
        "assert torch.equal(model(IDS), base)": "nested blocks: the inner one must put back what it found, not True",
        "assert torch.equal(model(IDS), tuned)": "all is put back after an error in the block, too: try and finally"},
    # instruction tuning
    "test_the_template_by_hand": {
        "At index 8 diff: 0": "the <eos> behind an answer is the model's own: it must be learned too",
        "At index 5 diff: 1": "the marker <assistant> is put there by the program; it is not learned"},
    "test_loss_of_the_worked_example": {
        "1.69172": "the shift by one: logits[t - 1] speak about label t",
        "0.575646": "divided by all positions instead of by the learned ones"},
    "test_every_token_counts_the_same": {
        "1.5": "a mean of the responses' means: a token of a short response counts more; one mean over all tokens"},
    "test_logits_that_predict_no_response_do_not_matter": {
        "": "what is not learned reaches the loss, as 0 * NaN or without the shift: pick the learned places first"},
    "test_nothing_to_learn_is_zero": {"nan": "a mean over nothing is 0 / 0: with no label to learn the loss is 0"},
    # instruction data
    "test_rouge_l_by_hand": {"": "an F1 score: 2 LCS / (words + words), of words(text), and 0 where one has no word"},
    "test_the_common_subsequence_is_the_longest": {
        "": "words in the same order, but not necessarily side by side: a table over both texts, row by row"},
    "test_simulated_annotators_err_as_planned": {
        "is None for x in said": "missing is the share of ratings that are left out, as None",
        "": "the row of the matrix belongs to the right label, the column to what is said; draw from the seed"},
    "test_annotators_do_not_copy_one_another": {
        "": "one random generator for all annotators: started anew for each, they err on the same items"},
    # PPO
    "test_token_rewards": {"[0.05, 1.98]": "the sign: KL is a price, so beta times the log-ratio is taken off"},
    "test_the_score_stands_on_each_rows_last_token": {
        "earned": "the score belongs to the last response token of its own row, which is not the last column of all"},
    "test_at_the_reference_only_the_score_is_paid": {
        "nan": "0 * NaN is NaN: leave out what stands outside the response with torch.where"},
    "test_gae_known_values": {
        "[0.40249": "gamma and lam are exchanged: lam decays the advantage, gamma the next value as well",
        "[-0.799": "the next value is missing: delta = reward + gamma * next value - value",
        "[0.09999": "the sum is over later tokens, not earlier ones: go from the last column to the first",
        "(returns - ": "returns are advantages + values, so that they follow lam too"},
    "test_nothing_leaks_into_gae_from_the_padding": {
        "[0.0, 9.885": "the padding's value counts as the next one: behind the last response token the value is 0",
        "nan": "0 * NaN is NaN: put 0 in place of what stands outside the response, with torch.where, before the sum"},
    # DPO
    "test_dpo_known_value": {
        "0.77095": "a ratio is turned round: policy minus reference, and chosen minus rejected",
        "0.59813": "the reference is left out: rewards are beta * (log p - log p of the reference)",
        "0.20141": "beta is left out: it stands in the loss and in the metrics"},
    "test_dpo_margins": {"1.13333": "a sum over the pairs: the loss is their mean"},
    "test_dpo_stays_finite": {
        "inf": "log(sigmoid(x)): a float's sigmoid reaches 0 and its log -inf; logsigmoid(x) does not",
        "nan": "log(sigmoid(x)): a float's sigmoid reaches 0 and its log -inf; logsigmoid(x) does not"},
    "test_conservative_dpo": {"0.620957": "label_smoothing is not used: that share of each label counts against it"},
    "test_simpo": {
        "2.30508": "gamma is a margin of rewards, so it is taken off after beta is multiplied, not before",
        "0.37110": "the sign of gamma: chosen has to win by gamma, so gamma is taken off",
        "0.79813": "gamma is left out: chosen has to win by at least that much"},
    # judging
    "test_macro_and_micro": {
        "": "macro: the mean of each cluster first, then the mean of these; micro: the mean of all scores"},
    "test_a_task_in_two_clusters_leaves_with_either": {
        "": "a task in two clusters is neither trained on in the folds of these two nor assessed there"},
    "test_a_task_whose_rows_name_two_clusters_is_in_both": {
        "": "a task is in every cluster that any of its rows names: ask clusters_of_tasks, not the row"},
    # preferences
    "test_annotators_err_as_often_as_bradley_terry_says": {
        "": "sigmoid of (first - second) / noise: the sign, or a product with the noise instead of a quotient"},
    "test_without_noise_a_tie_is_a_coins_throw": {"": "noise 0 and equal scores: the first wins in half of the cases, "
                                                      "rng.random() < 0.5"},
    "test_kappa_of_known_tables": {
        "": "chance comes from both annotators' frequencies: the sum over labels of their product"},
    "test_kappa_leaves_out_what_one_did_not_rate": {"": "None is no label: drop these items before counting anything"},
    "test_the_batch_loss_reads_each_answer_at_its_last_token": {
        'metrics["n_tokens"]': "the items of this mean are the pairs, so n_tokens counts pairs",
        "": "attention_mask does not reach last_scores, so padding is read"},
    "test_a_tie_is_no_win": {"": "accuracy counts chosen strictly above rejected"},
    "test_known_losses": {
        "1.31326": "the sign: the loss has to fall as chosen minus rejected grows",
        "0.20141": "the margin is what chosen has to win by, so it is subtracted"},
    "test_a_mean_over_pairs": {"0.75345": "a sum over the pairs; the loss is their mean"},
    "test_a_hopeless_pair_is_finite": {
        "inf": "log(sigmoid(x)) is log(0) for a large negative x: logsigmoid(x) does both in one step"},
    "test_win_rate_counts_ties_half": {
        "": "a tie counts half a win, for each of the two",
        "DID NOT RAISE": "NaN compares as false with everything, so it would count as a loss without a word"},
}
