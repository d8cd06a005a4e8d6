"""What ppo and grpo have in common: prompts, a judge, a reference, and measurements on held-out prompts."""

import copy
import json
from functools import partial

import torch

from minift.cli.encoders import encode_request
from minift.cli.examples import load
from minift.cli.rewards import check_judge
from minift.cli.run import Run
from minift.core.files import write_text
from minift.core.logprobs import kl_estimate, make_reference, masked_sum
from minift.methods.lora import base_reference
from minift.text.answers import generate_batch, make_generator
from minift.text.batches import chunks

# The forms of rows with a prompt; a row of the form "text" is a prompt itself, a chat ends with the right answer.
FORMS = ("prompt", "completion", "pair", "text", "messages")


def open_run(options, config_class, **settings):
    """(run, config, data): what the options ask for. settings: those of the method alone."""
    check_judge(options)
    run = Run(options)
    config = config_class(
        beta=options.beta, epochs=options.epochs, lr=run.settings.lr, minibatch_size=run.settings.minibatch_size,
        temperature=options.temperature, max_new_tokens=options.max_new_tokens,
        missing_eos_penalty=options.missing_eos_penalty, **settings)
    encode = partial(encode_request, tokenizer=run.tokenizer, room=run.context - options.max_new_tokens)
    data = load(options, encode, FORMS)
    run.set_data(data)
    return run, config, data


def set_policy(run, temperature):
    """Prepare the policy for training. Returns the reference: the model as it was."""
    if not run.options.lora:
        reference = make_reference(copy.deepcopy(run.model).to(run.device), temperature)
        run.set_model(run.model)
        return reference
    # The reference has the same weights with LoRA switched off.
    run.set_model(run.model)
    return base_reference(run.model, temperature)


def practise(run, config, data, reference, reward_fn, train):
    """Call `train` and record its result; the weights with the best score - beta * KL on held-out prompts are kept.

    train: train_ppo or train_grpo, its models and reward_fn given.
    """
    options = run.options
    prompts, valid = ([example["input_ids"] for example in examples] for examples in (data.train, data.valid))
    watch = Watch(run, config, reward_fn, reference, valid)
    with run.recorded():
        history = train(
            prompts, config, iterations=options.iterations, batch_size=options.batch_size, seed=options.seed,
            eos_id=run.tokenizer.eos_id, pad_id=run.tokenizer.pad_id,
            on_iteration=watch, state_path=run.state_path, resume=options.resume)
    if not data.valid:
        run.save()
    best = watch.best or history[-1]
    run.record |= {"steps": options.iterations, "best_step": best["iteration"], "before": watch.before}
    run.finish(
        **{name: best[name] for name in watch.before},
        **{f"last_{name}": history[-1][name] for name in ("score", "kl", "response_length", "eos_share")})


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
