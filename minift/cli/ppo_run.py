"""What the verb ppo adds to train_ppo: the first value model, and measurements on held-out prompts."""

import copy
import json
from functools import partial

import torch

from minift.cli.encoders import encode_request
from minift.cli.examples import load
from minift.cli.rewards import open_reward
from minift.cli.run import Run, with_lora
from minift.core.files import write_text
from minift.core.heads import TokenScorer
from minift.core.logprobs import kl_estimate, make_reference, masked_sum
from minift.errors import MiniftError
from minift.methods.lora import base_reference
from minift.methods.ppo_loop import PPOConfig, train_ppo, zero_head
from minift.text.answers import generate_batch, make_generator
from minift.text.batches import chunks

# The forms of rows with a prompt; a row of the form "text" is a prompt itself.
FORMS = ("prompt", "completion", "pair", "text")


def ppo(options):
    """Train a policy on its own answers; keep the weights with the best score - beta * KL on held-out prompts."""
    if (options.reward_model is None) == (options.reward_fn is None):
        raise MiniftError("ppo needs one of --reward-model DIR and --reward-fn FILE.py:NAME")
    run = Run(options)
    config = PPOConfig(
        beta=options.beta, target_kl=options.target_kl, epochs=options.epochs, lr=run.settings.lr,
        minibatch_size=run.settings.minibatch_size, temperature=options.temperature,
        max_new_tokens=options.max_new_tokens, missing_eos_penalty=options.missing_eos_penalty)
    encode = partial(encode_request, tokenizer=run.tokenizer, room=run.context - options.max_new_tokens)
    data = load(options, encode, FORMS)
    run.set_data(data)
    reward_fn, reward_model = open_reward(options, run, data)
    value_model = first_values(run, reward_model)
    reference = None if options.lora else make_reference(copy.deepcopy(run.model).to(run.device), config.temperature)
    run.set_model(run.model)
    # The reference has the same weights with LoRA switched off.
    reference = reference or base_reference(run.model, config.temperature)
    prompts, valid = ([example["input_ids"] for example in examples] for examples in (data.train, data.valid))
    watch = Watch(run, config, reward_fn, reference, valid)
    with run.recorded():
        history = train_ppo(
            run.model, reference, value_model, reward_fn, prompts, config,
            iterations=options.iterations, batch_size=options.batch_size, seed=options.seed,
            eos_id=run.tokenizer.eos_id, pad_id=run.tokenizer.pad_id,
            on_iteration=watch, state_path=run.state_path, resume=options.resume)
    if not data.valid:
        run.save()
    best = watch.best or history[-1]
    run.record |= {"steps": options.iterations, "best_step": best["iteration"], "before": watch.before}
    run.finish(
        **{name: best[name] for name in watch.before},
        **{f"last_{name}": history[-1][name] for name in ("score", "kl", "response_length", "eos_share")})


def first_values(run, reward_model):
    """The value model. It starts as a copy of the reward model, if that has the policy's sizes, else from the policy.

    A copy of the policy gets a head that gives 0. With LoRA the body's weights are frozen, so the copy shares them.
    """
    known = reward_model is not None and reward_model.config == run.model.config
    body = reward_model.body if known else run.model.body
    shared = {id(p): p for p in body.parameters()} if run.options.lora else {}
    model = TokenScorer(copy.deepcopy(body, shared))
    if known:
        model.score.load_state_dict(reward_model.score.state_dict())
    else:
        zero_head(model)
    model.body.checkpointing = run.options.checkpointing
    return with_lora(model.requires_grad_(True), run.options.lora).eval().to(run.device)


class Watch:
    """Called after each iteration: writes a row to metrics.jsonl; every few iterations it measures held-out prompts."""

    def __init__(self, run, config, reward_fn, reference, prompts):
        self.run, self.config, self.reward_fn, self.reference, self.prompts = run, config, reward_fn, reference, prompts
        self.every = run.options.eval_every or max(1, run.options.iterations // 10)
        self.rows = []
        if run.options.resume and run.metrics_path.exists():
            self.rows = [json.loads(line) for line in run.metrics_path.read_text(encoding="utf-8").splitlines()]
        self.before = self.measure() if prompts else {}

    @property
    def best(self):
        """The row whose weights are to be kept; None while no row was measured."""
        measured = [row for row in self.rows if "valid_objective" in row]
        return max(measured, key=lambda row: row["valid_objective"], default=None)

    def __call__(self, row):
        # A resumed run repeats some iterations; the new rows replace the old ones.
        self.rows = [old for old in self.rows if old["iteration"] < row["iteration"]]
        last = row["iteration"] == self.run.options.iterations
        if self.prompts and (last or row["iteration"] % self.every == 0):
            row = {**row, **self.measure()}
        self.rows.append(row)
        write_text(self.run.metrics_path, "".join(json.dumps(row) + "\n" for row in self.rows))
        if self.best is row:
            self.run.save()

    @torch.no_grad()
    def measure(self):
        """Means over one sampled answer to each held-out prompt, always from one seed: score, KL, score - beta * KL."""
        scores, kls = [], []
        model, tokenizer = self.run.model, self.run.tokenizer
        generator = make_generator(model, self.run.options.seed)
        for part in chunks(self.prompts, self.run.options.batch_size):
            out = generate_batch(
                model, tokenizer, part, max_new_tokens=self.config.max_new_tokens,
                temperature=self.config.temperature, generator=generator)
            kl = kl_estimate(out.logprobs, self.reference(out.input_ids, out.attention_mask), "k1")  # (B, T-1)
            kls += masked_sum(kl, out.response_mask[:, 1:], 1).tolist()
            ended = out.ended(tokenizer.eos_id)  # (B,)
            scores += (self.reward_fn(out) - self.config.missing_eos_penalty * ~ended).tolist()
        score, kl = sum(scores) / len(scores), sum(kls) / len(kls)
        return {"valid_score": score, "valid_kl": kl, "valid_objective": score - self.config.beta * kl}
