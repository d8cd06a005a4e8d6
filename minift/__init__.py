"""minift: fine-tuning from scratch, in pure PyTorch, one idea a file.

The afternoon path: whoever reads these files, in this order, knows how everything works.

    core/attention          which token looks at which; rotary positions; the cache of keys and values
    core/transformer        one body for decoders (GPT-2, Llama) and encoders (BERT)
    core/heads              scores over the vocabulary, a label, or a score a token
    core/logprobs           log-probabilities, the shift by one, masked means, KL estimates
    core/generate           sampling: temperature, top-k, top-p
    core/decode             the newest token alone, fast
    core/settings           checks of numbers that a user sets
    core/step               learning rate, optimizer, the gradient's reduction
    core/train              the training loop: forward, backward, step
    core/run                a run that can be stopped and resumed
    core/resume             the state of a run on the disk
    core/files              files that are whole or absent
    core/resize             more tokens than a model was made with
    text/bpe                byte-pair encoding: learn the merges
    text/tokenizer          text to ids and back
    text/wordpiece          the tokens of BERT
    text/chat_format        the text around each turn of a chat
    text/chat               a conversation as ids, and which of them the model writes
    text/jsonl              one JSON object a line
    text/batches            padding, batches, windows, packing, epochs
    text/pairs              preference pairs as ids
    text/segments           texts as an encoder reads them
    text/answers            a model's sampled answers
    methods/pretrain        predict the next token; replay of old text
    methods/lora            a low-rank change of frozen weights
    methods/mlm             masked language modelling
    methods/classify        a head on an encoder, frozen or trained along
    methods/sft             learn the response only
    methods/reward          a score, learned from preferences
    methods/ppo             the formulas of PPO
    methods/ppo_loop        the loop of PPO, in numbered steps
    methods/dpo             learn from preferences without a reward model
    evaluation/metrics      perplexity, agreement of texts, classification, calibration
    evaluation/masked       how well hidden tokens are filled in
    evaluation/baselines    what a classifier must beat
    evaluation/clusters     tasks judged by withheld clusters
    evaluation/judge        which of two models answers better
    evaluation/exact        a world small enough to know the optimum

What applies them:

    formats     files that others read or write: Hugging Face, PEFT, llama.cpp
    ways        where instruction and preference data come from
    label       the page on which people write, annotate and choose
    world       the embedded toy world
    show        pictures, source code, coloured tokens, reports
    studies     the long experiments
    learn       check() with its hints; opening a lesson
    tour        the whole journey
    cli         the command line, one module a verb
    errors      the one family of errors that a user can cause

Shape letters in every comment: B batch, T tokens, D d_model, H heads, K key/value heads, E head width,
F d_ff, V vocabulary, L labels (or layers in a cache), R rank. All log-probabilities are in nats.
"""
