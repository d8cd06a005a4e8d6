"""minift: fine-tuning from scratch, in pure PyTorch, one idea in each file.

The afternoon path: read these files in this order, and you know how everything works.

    core/attention          which token attends to which; rotary positions; the cache of keys and values
    core/transformer        one body for decoders (GPT-2, Llama) and encoders (BERT)
    core/heads              logits over the vocabulary, a label for a text, or a score for each token
    core/logprobs           log-probabilities, the shift by one, masked means, KL estimates
    core/generate           sampling: temperature, top-k, top-p
    core/decode             a fast forward pass for the newest token alone
    core/settings           checks of numbers that a user sets
    core/step               learning rate, optimizer, the gradient's reduction
    core/train              the training loop: forward, backward, step
    core/run                a run that can be stopped and resumed
    core/resume             the state of a run on the disk
    core/files              files that are complete or absent: atomic writing, checksums
    core/resize             more tokens for a model: new rows in its embedding
    text/bpe                byte-pair encoding: learn the merges
    text/tokenizer          text to ids and back
    text/wordpiece          WordPiece, the tokens of BERT
    text/chat_format        the text around each turn of a chat
    text/chat               a conversation as ids, and which ids the model writes
    text/jsonl              JSON Lines: one JSON object on each line
    text/batches            padding, batches, windows, packing, epochs
    text/pairs              preference pairs as ids
    text/segments           one or two texts as the input of an encoder
    text/answers            a model's sampled answers
    methods/pretrain        predict the next token; replay of old text
    methods/lora            LoRA: a low-rank change of frozen weights
    methods/mlm             masked language modelling
    methods/classify        a classification head on an encoder, which is frozen or trained as well
    methods/sft             supervised fine-tuning: learn the response only
    methods/reward          the reward model: a score, learned from preferences
    methods/ppo             the formulas of PPO
    methods/rollout         what PPO and GRPO share: write, score, update
    methods/ppo_loop        the loop of PPO, in numbered steps
    methods/grpo            REINFORCE, RLOO, GRPO, Dr. GRPO and DAPO: no critic
    methods/dpo             DPO and its family: learn from preferences without a reward model
    methods/kto             learning from single answers, wanted or unwanted
    evaluation/metrics      perplexity, agreement of texts, classification, calibration
    evaluation/masked       accuracy on hidden tokens
    evaluation/baselines    what a classifier must beat
    evaluation/clusters     how a model does on clusters of tasks that it was not trained on
    evaluation/judge        which of two models answers better
    evaluation/verifiable   answers that can be checked: exact match as a reward, pass@k
    evaluation/exact        a world so small that the optimum is known

What applies them:

    formats     files that other programs read or write: Hugging Face, PEFT, llama.cpp
    ways        where instruction and preference data come from
    label       the page on which people write, annotate and choose
    world       the embedded toy world
    show        pictures, source code, coloured tokens, and reports
    studies     the long experiments
    learn       check() with its hints; opening a lesson
    tour        the whole journey
    cli         the command line, one module for each verb
    errors      the one family of errors that a user can cause

Shape letters in every comment: B batch, T tokens, D d_model, H heads, K key/value heads, E head width,
F d_ff, V vocabulary, L labels (or layers in a cache), R rank. All log-probabilities are in nats.
"""
