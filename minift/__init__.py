"""minift: fine-tuning from scratch, in pure PyTorch, one idea a file.

The map of the package (imports point down the list, never up):

    tour, __main__   the whole journey, and the command line (whose work is in jobs)
    label            a page on which people compare answers, label texts, write instructions
    cluster_study, four_ways, label_curve    studies: unseen clusters, ways to get data, numbers of labels
    recipes, baselines    how data/ was made; what a classifier must beat
    check, explain, hints    exercises that check themselves, and what they say
    show, pictures, report    what lessons, studies and the tour show
    datasets         where text comes from: the toy world, JSONL files, chats, templates, batches, preferences
    evaluation       how good is it: metrics, and a world small enough to know the exact answer
    methods          one fine-tuning idea per file; none imports another
    core             the machinery that every method uses: model, log-probabilities, sampler, loop, checkpoints
    errors           the one family of errors that a user can cause

Shape letters in every comment: B batch, T tokens, D d_model, H heads, K key/value heads, E head width,
F d_ff, V vocabulary, L labels (or layers in a cache), R rank. All log-probabilities are in nats.
"""
