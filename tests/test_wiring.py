"""Every option arrives: a command gives values other than the defaults, and the functions that use them are watched."""

import argparse
import functools
import inspect
import json
from pathlib import Path

import pytest
import torch
from test_cli import CHATS, PAIRS, TEXTS, call
from test_cli import train_command as decoder_command
from test_encoder_jobs import no_measure, save_classifier
from test_encoder_jobs import train_command as encoder_command
from test_jobs import make_tokenizer, save_tiny, write

from minift import tour
from minift.cli import (
    classifier,
    data_report,
    label_page,
    leave_out,
    measures,
    options,
    predict,
    rollouts,
    run,
    sampling,
)
from minift.cli.options import Parser, settle
from minift.cli.parser import VERBS, find_module, parse
from minift.core.attention import Attention
from minift.core.train import TrainConfig
from minift.formats import export, export_gguf
from minift.learn import lesson
from minift.methods import dpo, grpo, lora, mlm, ppo_loop, pretrain, rollout
from minift.methods import reward as reward_method
from minift.studies import cluster_study
from minift.text import batches
from minift.ways import templates


class Stop(Exception):
    """Ends a command once what matters has been seen."""


def watch(monkeypatch, *places, stop=False):
    """A dict that will hold "name" -> the arguments of the first call of each (module, name); stop: end it there."""
    seen = {}
    for module, name in places:
        function = getattr(module, name)

        monkeypatch.setattr(module, name, watcher(name, function, seen, stop))
    return seen


def watcher(label, function, seen, stop):
    """`function`, whose arguments are written into seen[label]."""
    @functools.wraps(function)
    def watched(*args, **kwargs):
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        seen.setdefault(label, dict(bound.arguments))
        if stop:
            raise Stop
        return function(*args, **kwargs)
    return watched


def run_until_stop(*words):
    with pytest.raises(Stop):
        call(*words)


# ---- no option is forgotten ----

# Options whose arrival other tests prove, by what the command then does: option -> the file of these tests.
PROVED_ELSEWHERE = {
    "--model": "test_cli", "--data": "test_cli", "--valid": "test_cli", "--out": "test_cli", "--overwrite": "test_cli",
    "--resume": "test_cli", "--device": "test_mistakes", "--recipe": "test_encoder_jobs",
    "--predict": "test_encoder_jobs", "--prompt": "test_cli", "--raw": "test_cli", "--system": "test_cli",
    "--reference": "test_cli", "--reward-model": "test_cli", "--reward-fn": "test_cli", "--checker": "test_cli",
    "--loss": "test_dpo_cli", "--list": "test_lessons",
    "--prompts": "test_label", "--pairs": "test_label", "--items": "test_label", "--labels": "test_label",
    "--annotators": "test_label", "--guidelines": "test_label", "--freeze": "test_encoder_jobs",
    "--full": "test_encoder_jobs", "--probe-then-full": "test_encoder_jobs",
    "--leave-one-cluster-out": "test_cluster_study",
}
# Options whose arrival the tests below prove.
PROVED_HERE = {
    "tour": {"--seed", "--seeds", "--stages", "--quick", "--resume", "--out"},
    "pretrain": {"--replay", "--replay-share", "--context", "--lora", "--lr", "--steps", "--epochs", "--batch-size",
                 "--accumulate", "--eval-every", "--checkpointing", "--seed"},
    "sft": {"--lora", "--lr", "--steps", "--epochs", "--batch-size", "--accumulate", "--eval-every", "--checkpointing",
            "--seed", "--context"},
    "mlm": {"--hidden", "--whole-words", "--lora", "--lr", "--steps", "--epochs", "--batch-size", "--accumulate",
            "--eval-every", "--checkpointing", "--seed", "--context"},
    "classify": {"--pooling", "--lora", "--lr", "--steps", "--epochs", "--batch-size", "--accumulate", "--eval-every",
                 "--checkpointing", "--seed", "--context"},
    "ppo": {"--lora", "--lr", "--iterations", "--batch-size", "--minibatch-size", "--epochs", "--beta", "--target-kl",
            "--missing-eos-penalty", "--max-new-tokens", "--temperature", "--eval-every", "--checkpointing", "--seed",
            "--context"},
    "grpo": {"--lora", "--lr", "--iterations", "--batch-size", "--minibatch-size", "--epochs", "--beta", "--method",
             "--group-size", "--kl-in", "--clip-range", "--mask-truncated", "--missing-eos-penalty", "--max-new-tokens",
             "--temperature", "--eval-every", "--checkpointing", "--seed", "--context"},
    "lab": {"name", "--out", "--quick"},
    "check-data": {"--context", "--batch-size", "--show"},
    "generate": {"--batch-size", "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed"},
    "evaluate": {"--show", "--context", "--batch-size", "--max-new-tokens", "--clusters", "--seeds", "--steps", "--lr"},
    "chat": {"--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed"},
    "templates": {"--templates", "--split", "--no-inverted", "--seed"},
    "label": {"--max-new-tokens", "--temperature", "--batch-size", "--seed", "--port"},
    "merge": set(), "export": {"--gguf"}, "lesson": {"number", "jupyter"},
}
for _verb in ("pretrain", "sft", "mlm", "classify", "ppo", "grpo"):
    PROVED_HERE[_verb] |= {"--skip-bad", "--drop-duplicates"}
    PROVED_HERE[_verb] |= {"--dtype"} if _verb not in ("ppo", "grpo") else set()
PROVED_HERE["reward"] = PROVED_HERE["sft"]
PROVED_HERE["dpo"] = PROVED_HERE["sft"] | {"--beta", "--label-smoothing"}


def names_of(parser):
    """The options and positional arguments of a verb, those of its modes included."""
    names = set()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for mode in action.choices.values():
                names |= names_of(mode)
        elif not isinstance(action, argparse._HelpAction):
            names.add(action.option_strings[0] if action.option_strings else action.dest)
    return names


@pytest.mark.parametrize("verb", VERBS)
def test_no_option_is_without_a_test(verb):
    """Each option of each verb is watched below or proved elsewhere; what is listed exists."""
    parser = Parser()
    find_module(verb).add_options(parser)
    names = names_of(parser)
    assert not names - PROVED_HERE[verb] - PROVED_ELSEWHERE.keys(), "an option whose arrival no test looks at"
    assert not PROVED_HERE[verb] - names, "a test for an option that is gone"
    for name in names & PROVED_ELSEWHERE.keys():
        file = Path(__file__).with_name(f"{PROVED_ELSEWHERE[name]}.py")
        assert f'"{name}"' in file.read_text(encoding="utf-8"), f"{file.name} does not use {name}"


# ---- the settings of training ----

TRAINED = ["--lr", "0.0123", "--batch-size", "3", "--accumulate", "2", "--eval-every", "7", "--seed", "5",
           "--checkpointing", "--context", "40"]


def without(words, *names):
    """The words of a command without some options and their values."""
    kept = list(words)
    for name in names:
        if name in kept:
            del kept[kept.index(name):kept.index(name) + 2]
    return kept


@pytest.mark.parametrize("verb", ["pretrain", "sft", "reward", "dpo"])
def test_settings_of_training_arrive(verb, tmp_path, monkeypatch):
    """Rate, steps, batches, accumulation, evaluation, seed, context, checkpointing and LoRA's rank all arrive."""
    words = without(decoder_command(verb, tmp_path), "--steps", "--batch-size", "--eval-every")
    seen = watch(monkeypatch, (run, "train"), (run, "Batches"), (run, "add_lora"), (run, "context_of"),
                 (batches, "Windows"), (batches, "token_windows"))
    monkeypatch.setattr(run.Run, "finish", lambda self, **result: None)
    models = []
    set_model = run.Run.set_model
    monkeypatch.setattr(run.Run, "set_model", lambda self, model: set_model(self, model) or models.append(self.model))
    assert call(*words, *TRAINED, "--steps", 2, "--lora", 3) == 0
    settings = seen["train"]["settings"]
    assert (settings["lr"], settings["steps"], settings["accumulate"]) == (0.0123, 2, 2)
    assert settings["eval_every"] == settings["save_every"] == 7 and settings["name"] == verb
    assert torch.initial_seed() == 5, "new weights, such as LoRA's, come from the seed"
    assert (seen["Batches"]["batch_size"], seen["Batches"]["seed"]) == (3, 5)
    assert (seen["add_lora"]["rank"], seen["add_lora"]["alpha"]) == (3, 2 * 3), "alpha is twice the rank"
    assert seen["context_of"]["asked"] == 40 and models[0].body.checkpointing
    if verb == "pretrain":
        assert seen["token_windows"]["length"] == 39, "validation predicts as far as a full context reaches"
        assert (seen["Windows"]["length"], seen["Windows"]["batch_size"], seen["Windows"]["seed"]) == (40, 3, 5)


@pytest.mark.parametrize("verb", ["sft", "ppo"])
def test_bad_rows_and_duplicates_are_left_out_on_demand(verb, tmp_path, capsys):
    """--skip-bad trains without a broken row, --drop-duplicates without a repeated one; both are counted."""
    words = decoder_command(verb, tmp_path)
    data = words[words.index("--data") + 1]
    lines = data.read_text(encoding="utf-8").splitlines()
    data.write_text("\n".join([*lines, lines[0], "{broken"]) + "\n", encoding="utf-8")
    assert call(*words) == 2 and "{broken" not in capsys.readouterr().out
    assert call(*words, "--skip-bad", "--drop-duplicates") == 0
    out = capsys.readouterr().out
    assert "1 dropped: errors, the first is" in out and "1 dropped: the same as an earlier row" in out


def test_bfloat16_is_refused_where_it_is_slow(tmp_path, capsys):
    """--dtype arrives: without a CUDA device bfloat16 is refused in one sentence, before anything is read."""
    assert call(*decoder_command("sft", tmp_path), "--dtype", "bfloat16", "--device", "cpu") == 2
    assert "--dtype bfloat16 is slower" in capsys.readouterr().err


def test_bfloat16_reaches_the_training(tmp_path, monkeypatch):
    """--dtype arrives at train; the CUDA device is only named, since nothing is computed."""
    monkeypatch.setattr(run, "pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(run.Run, "set_model", lambda self, model: None)
    monkeypatch.setattr(run, "mean_metrics", lambda *given: {})
    seen = watch(monkeypatch, (run, "train"), stop=True)
    run_until_stop(*decoder_command("sft", tmp_path), "--dtype", "bfloat16")
    assert seen["train"]["settings"]["dtype"] == "bfloat16"


@pytest.mark.parametrize("verb", ["pretrain", "sft", "reward", "dpo", "mlm", "classify"])
def test_only_the_training_rows_are_shuffled(verb, tmp_path, monkeypatch):
    """Each pass over the validation batches gives the very same ones, each pass over the training batches others."""
    def look(self, loss_fn, batches, valid_batches):
        for part, same in ((batches, False), (valid_batches, True)):
            first, second = list(part), list(part)
            assert len(first) > 1 and same == all(
                torch.equal(x, other[name]) for one, other in zip(first, second) for name, x in one.items())
        raise Stop
    monkeypatch.setattr(run.Run, "train", look)
    command = encoder_command if verb in ("mlm", "classify") else decoder_command
    words = command(verb, tmp_path, *(["--full"] if verb == "classify" else []))
    data = words[words.index("--data") + 1]
    valid = write(tmp_path / "valid.jsonl", *data.read_text(encoding="utf-8").splitlines()[:9])
    run_until_stop(*words, "--valid", valid, "--batch-size", 2)


@pytest.mark.parametrize("verb, module, name", [("sft", run, "train"), ("ppo", ppo_loop, "train_ppo")])
def test_a_tenth_of_the_run_lies_between_validations(verb, module, name, tmp_path, monkeypatch):
    """Without --eval-every, 30 steps or iterations are validated and saved every third."""
    seen = watch(monkeypatch, (module, name), stop=True)
    words = without(decoder_command(verb, tmp_path), "--steps", "--iterations", "--eval-every")
    run_until_stop(*words, "--iterations" if verb == "ppo" else "--steps", 30)
    if verb == "ppo":
        assert seen[name]["on_iteration"].every == 3
    else:
        assert seen[name]["settings"]["eval_every"] == seen[name]["settings"]["save_every"] == 3


def test_epochs_become_steps(tmp_path, monkeypatch):
    """Without --steps: epochs * batches / accumulate steps, rounded up."""
    seen = watch(monkeypatch, (run, "train"), stop=True)
    words = without(decoder_command("sft", tmp_path), "--steps", "--batch-size", "--eval-every")
    valid = write(tmp_path / "valid.jsonl", *CHATS[:2])
    run_until_stop(*words, "--valid", valid, "--batch-size", 5, "--accumulate", 4, "--epochs", 3)
    n_batches = -(-len(CHATS) // 5)
    assert seen["train"]["settings"]["steps"] == -(-3 * n_batches // 4)


@pytest.mark.parametrize("verb, more", [("mlm", ()), ("classify", ("--full",))])
def test_settings_of_an_encoder_arrive(verb, more, tmp_path, monkeypatch):
    """The same for mlm and classify --full; LoRA is refused there in a sentence."""
    seen = watch(monkeypatch, (run, "train"), (run, "Batches"), (run, "context_of"))
    monkeypatch.setattr(run.Run, "finish", lambda self, **result: None)
    monkeypatch.setattr(classifier, "measure", no_measure)
    models = []
    set_model = run.Run.set_model
    monkeypatch.setattr(run.Run, "set_model", lambda self, model: set_model(self, model) or models.append(self.model))
    assert call(*encoder_command(verb, tmp_path, *more), *TRAINED, "--steps", 2) == 0
    settings = seen["train"]["settings"]
    assert (settings["lr"], settings["steps"], settings["accumulate"], settings["eval_every"]) == (0.0123, 2, 2, 7)
    assert settings["name"] == verb and torch.initial_seed() == 5, "a new head comes from the seed"
    assert (seen["Batches"]["batch_size"], seen["Batches"]["seed"]) == (3, 5)
    assert seen["context_of"]["asked"] == 40 and models[0].body.checkpointing
    assert call(*encoder_command(verb, tmp_path, *more, out="other"), "--lora", 2) == 2
    words = encoder_command(verb, tmp_path, *more, out="third")
    seen = watch(monkeypatch, (run, "train"), stop=True)
    run_until_stop(*words, "--epochs", 2, "--batch-size", 99)
    assert seen["train"]["settings"]["steps"] == 2


def test_what_mlm_hides_arrives(tmp_path, monkeypatch):
    """--hidden and --whole-words reach Masked, with the seed."""
    seen = watch(monkeypatch, (mlm, "Masked"), stop=True)
    run_until_stop(*encoder_command("mlm", tmp_path), "--hidden", 0.4, "--whole-words", "--seed", 5)
    masked = seen["Masked"]["settings"] if "settings" in seen["Masked"] else seen["Masked"]
    assert (masked["probability"], masked["seed"]) == (0.4, 5) and len(masked["letters"]) == 2


def test_settings_of_a_probe_arrive(tmp_path, monkeypatch):
    """classify --freeze: rate, steps and seed reach the probe, --pooling the head, --batch-size the features."""
    seen = watch(monkeypatch, (classifier, "SequenceClassifier"), (classifier, "train_probe"),
                 (classifier, "labelled_batches"))
    monkeypatch.setattr(classifier, "measure", no_measure)
    assert call(*encoder_command("classify", tmp_path), "--pooling", "cls", "--lr", 0.0123, "--steps", 3, "--seed", 5,
                "--batch-size", 7) == 0
    assert seen["SequenceClassifier"]["pooling"] == "cls" and seen["labelled_batches"]["batch_size"] == 7
    assert seen["train_probe"]["settings"] == {"lr": 0.0123, "steps": 3, "seed": 5}


def test_predicting_reads_as_many_tokens_as_asked(tmp_path, monkeypatch):
    """classify --predict: --context and --batch-size."""
    seen = watch(monkeypatch, (predict, "context_of"), (predict, "labelled_batches"))
    rows = write(tmp_path / "rows.jsonl", *TEXTS[:3])
    assert call("classify", "--model", save_classifier(tmp_path / "model"), "--predict", rows, "--context", 20,
                "--batch-size", 2) == 0
    assert seen["context_of"]["asked"] == 20 and seen["labelled_batches"]["batch_size"] == 2


def test_settings_of_dpo_arrive(tmp_path, monkeypatch):
    """--beta and --label-smoothing reach the loss."""
    seen = watch(monkeypatch, (dpo, "make_dpo_loss"), (dpo, "add_reference_logprobs"))
    assert call(*decoder_command("dpo", tmp_path), "--beta", 0.7, "--label-smoothing", 0.2) == 0
    assert (seen["make_dpo_loss"]["beta"], seen["make_dpo_loss"]["label_smoothing"]) == (0.7, 0.2)
    assert seen["add_reference_logprobs"]["batch_size"] == 8


def test_settings_of_replay_arrive(tmp_path, monkeypatch):
    """--replay's text, its share and the seed."""
    seen = watch(monkeypatch, (pretrain, "replay"), (sampling, "continuation"))
    old = write(tmp_path / "old.jsonl", *TEXTS)
    assert call(*decoder_command("pretrain", tmp_path), "--replay", old, "--replay-share", 0.45, "--seed", 5) == 0
    assert (seen["replay"]["share"], seen["replay"]["seed"]) == (0.45, 5)
    assert seen["continuation"]["seed"] == 5, "of the samples before and after"
    record = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert old.as_posix() in record["data"], "old text is data too, which --resume compares"


# ---- PPO and GRPO ----


def run_rollouts(verb, loop, words, rank, tmp_path, monkeypatch):
    """Run a verb up to its loop: what its parts were given by name, and what the loop was given."""
    seen = watch(monkeypatch, (rollouts, "make_reference"), (rollouts, "base_reference"), (run, "add_lora"),
                 (run, "context_of"))
    seen_last = watch(monkeypatch, loop, stop=True)
    command = without(decoder_command(verb, tmp_path), "--epochs")
    run_until_stop(*command, *words, "--context", 60, *(["--lora", rank] if rank else []))
    return seen, seen_last[loop[1]]


PPO = ["--lr", "0.0123", "--minibatch-size", "3", "--epochs", "3", "--beta", "0.7", "--target-kl", "2.5",
       "--missing-eos-penalty", "0.4", "--temperature", "0.6", "--seed", "5", "--eval-every", "2", "--checkpointing"]


@pytest.mark.parametrize("rank", [None, 3])
def test_settings_of_ppo_arrive(rank, tmp_path, monkeypatch):
    """Every setting reaches PPOConfig or train_ppo; the reference has the temperature of the sampling."""
    seen, given = run_rollouts("ppo", (ppo_loop, "train_ppo"), PPO, rank, tmp_path, monkeypatch)
    config = given["config"]
    assert (config.lr, config.minibatch_size, config.epochs, config.beta) == (0.0123, 3, 3, 0.7)
    assert (config.target_kl, config.missing_eos_penalty, config.temperature, config.max_new_tokens) == (2.5, .4, .6, 4)
    assert (given["iterations"], given["batch_size"], given["seed"]) == (2, 4, 5)
    tokenizer = make_tokenizer()
    assert (given["eos_id"], given["pad_id"], given["save_every"]) == (tokenizer.eos_id, tokenizer.pad_id, 1)
    assert given["on_iteration"].every == 2 and given["policy"].body.checkpointing
    assert given["value_model"].body.checkpointing and seen["context_of"]["asked"] == 60
    assert seen["base_reference" if rank else "make_reference"]["temperature"] == 0.6
    if rank:
        assert (seen["add_lora"]["rank"], seen["add_lora"]["alpha"]) == (3, 6)


GRPO = ["--lr", "0.0123", "--minibatch-size", "3", "--epochs", "3", "--beta", "0.7", "--missing-eos-penalty", "0.4",
        "--temperature", "0.6", "--seed", "5", "--eval-every", "2", "--checkpointing", "--method", "rloo", "--kl-in",
        "reward", "--clip-range", "0.1", "0.3", "--mask-truncated"]


@pytest.mark.parametrize("rank", [None, 3])
def test_settings_of_grpo_arrive(rank, tmp_path, monkeypatch):
    """Every setting reaches GRPOConfig or train_grpo; one --clip-range is for both directions."""
    seen, given = run_rollouts("grpo", (grpo, "train_grpo"), GRPO, rank, tmp_path, monkeypatch)
    config = given["config"]
    assert (config.lr, config.minibatch_size, config.epochs, config.beta) == (0.0123, 3, 3, 0.7)
    assert (config.missing_eos_penalty, config.temperature, config.max_new_tokens) == (.4, .6, 4)
    assert (config.method, config.group_size, config.kl_in, config.mask_truncated) == ("rloo", 2, "reward", True)
    assert (config.clip_range, config.clip_range_high) == (0.1, 0.3)
    assert (given["iterations"], given["batch_size"], given["seed"]) == (2, 4, 5)
    tokenizer = make_tokenizer()
    assert (given["eos_id"], given["pad_id"], given["save_every"]) == (tokenizer.eos_id, tokenizer.pad_id, 1)
    assert given["on_iteration"].every == 2 and given["policy"].body.checkpointing and seen["context_of"]["asked"] == 60
    assert seen["base_reference" if rank else "make_reference"]["temperature"] == 0.6
    if rank:
        assert (seen["add_lora"]["rank"], seen["add_lora"]["alpha"]) == (3, 6)


def test_ppo_looks_at_held_out_prompts_as_it_samples(tmp_path, monkeypatch):
    """The held-out answers have PPO's temperature, length, seed and batch size."""
    seen = watch(monkeypatch, (rollouts, "generate_batch"))
    valid = write(tmp_path / "valid.jsonl", *[{"prompt": row["prompt"]} for row in CHATS[:6]])
    assert call(*decoder_command("ppo", tmp_path), "--valid", valid, "--temperature", 0.6, "--seed", 5) == 0
    given = seen["generate_batch"]
    assert (given["temperature"], given["max_new_tokens"], len(given["prompts"])) == (0.6, 4, 4)
    assert given["generator"].initial_seed() == 5


def test_ppos_optimizer(monkeypatch):
    """No weight decay (it would pull the policy from the reference), Adam's betas, and eps 1e-5 as in OpenAI's PPO."""
    from test_ppo import FAST, run, start
    seen = watch(monkeypatch, (rollout, "make_optimizer"), (rollout, "take_step"))
    run(*start(), lr=0.0123, clip=0.25)
    assert FAST.get("clip") != 0.25
    given = seen["make_optimizer"]
    assert (given["lr"], given["weight_decay"], given["betas"], given["eps"]) == (0.0123, 0.0, (0.9, 0.999), 1e-5)
    assert (seen["take_step"]["lr"], seen["take_step"]["clip"]) == (0.0123, 0.25)


def test_the_controller_counts_responses(monkeypatch):
    """AdaptiveKL hears the measured KL and n, the number of responses in the rollout."""
    from test_ppo import run, start
    heard = []
    update = ppo_loop.AdaptiveKL.update
    monkeypatch.setattr(ppo_loop.AdaptiveKL, "update", lambda self, kl, n: heard.append(
        (self.target, self.horizon, kl, n)) or update(self, kl, n))
    history = run(*start(), target_kl=2.0, kl_horizon=50, iterations=2)
    assert [(target, horizon, n) for target, horizon, _, n in heard] == [(2.0, 50, 10)] * 2
    assert [kl for _, _, kl, _ in heard] == [row["kl"] for row in history]


# ---- use ----

SAMPLED = ["--max-new-tokens", "5", "--temperature", "0.6", "--top-k", "9", "--top-p", "0.8", "--seed", "5"]


def test_settings_of_sampling_arrive(tmp_path, monkeypatch):
    """generate and chat: length, temperature, top-k, top-p, seed and batch size."""
    model = save_tiny(tmp_path / "model")
    seen = watch(monkeypatch, (sampling, "generate_batch"))
    data = write(tmp_path / "p.jsonl", *[{"prompt": row["prompt"]} for row in CHATS[:5]])
    assert call("generate", "--model", model, "--data", data, "--batch-size", 2, *SAMPLED) == 0
    given = seen["generate_batch"]
    assert [given[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p")] == [5, 0.6, 9, 0.8]
    assert given["generator"].initial_seed() == 5 and len(given["prompts"]) == 2
    said = iter(["Where is Ada?", "/quit"])
    monkeypatch.setattr("builtins.input", lambda label: next(said))
    seen = watch(monkeypatch, (sampling, "stream_text"))
    assert call("chat", "--model", model, *SAMPLED) == 0
    given = seen["stream_text"]
    assert [given[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p")] == [5, 0.6, 9, 0.8]
    assert given["generator"].initial_seed() == 5


@pytest.mark.parametrize("words, n_models", [
    (("generate", "--prompt", "fox", "--max-new-tokens", 1), 1), (("chat",), 1), (("evaluate", "--data", "pairs"), 1),
    (("evaluate", "--data", "pairs", "--reference", "model"), 2), (("check-data", "--data", "pairs"), 1),
    (("classify", "--predict", "texts"), 1),
    (("label", "compare", "--prompts", "prompts", "--out", "out", "--max-new-tokens", 1), 1)])
def test_models_go_to_the_device(words, n_models, tmp_path, monkeypatch):
    """Each model that computes is moved to the device that --device names."""
    monkeypatch.chdir(tmp_path)
    save = save_classifier if words[0] == "classify" else save_tiny
    save(tmp_path / "model")
    for name, rows in (("pairs", PAIRS[:2]), ("texts", TEXTS[:2]), ("prompts", CHATS[:2])):
        write(tmp_path / name, *rows)
    moved, to = [], torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *where: moved.extend(where) or to(self, *where))
    monkeypatch.setattr("builtins.input", lambda label: "/quit")
    monkeypatch.setattr(label_page, "wait", lambda server: server.server_close())
    assert call(*words, "--model", "model", "--device", "cpu") == 0
    assert moved.count(torch.device("cpu")) == n_models


def test_settings_of_evaluate_arrive(tmp_path, monkeypatch, capsys):
    """--context cuts windows and pairs, --batch-size and --max-new-tokens the answers."""
    model = save_tiny(tmp_path / "model")
    seen = watch(monkeypatch, (measures, "write_answers"), (measures, "token_windows"), (measures, "Batches"),
                 (measures, "encode_preference"), (measures, "logprob_gaps"))
    data = write(tmp_path / "rows.jsonl", *CHATS[:3], TEXTS[0], PAIRS[0])
    assert call("evaluate", "--model", model, "--data", data, "--context", 50, "--batch-size", 7, "--max-new-tokens",
                3, "--show", 2) == 0
    out = capsys.readouterr().out
    assert f"expected: {CHATS[0]['completion']}" in out and out.count("expected: ") == 2
    assert (seen["write_answers"]["max_new_tokens"], seen["write_answers"]["batch_size"]) == (3, 7)
    assert seen["write_answers"]["temperature"] == 0.0, "answers are greedy"
    assert seen["token_windows"]["length"] == 49 and seen["Batches"]["batch_size"] == 7
    assert seen["encode_preference"]["context"] == 50 and seen["logprob_gaps"]["batch_size"] == 7


def test_settings_of_evaluate_arrive_for_scores_and_labels(tmp_path, monkeypatch):
    """--batch-size and --context, where a reward model or a classifier is judged."""
    seen = watch(monkeypatch, (measures, "Batches"), (measures, "labelled_batches"), (measures, "encode_labelled_row"))
    pairs = write(tmp_path / "pairs.jsonl", *PAIRS[:3])
    judge = save_tiny(tmp_path / "reward", "TokenScorer")
    assert call("evaluate", "--model", judge, "--data", pairs, "--batch-size", 7) == 0
    labels = write(tmp_path / "labels.jsonl", *[{**row, "label": "glad"} for row in TEXTS[:3]])
    model = save_classifier(tmp_path / "model")
    assert call("evaluate", "--model", model, "--data", labels, "--batch-size", 7, "--context", 20) == 0
    assert seen["Batches"]["batch_size"] == seen["labelled_batches"]["batch_size"] == 7
    assert seen["encode_labelled_row"]["context"] == 20


def test_settings_of_the_folds_arrive(tmp_path, monkeypatch):
    """--clusters, --seeds, --steps and --lr reach the study."""
    seen = watch(monkeypatch, (cluster_study, "run"), stop=True)
    run_until_stop("evaluate", "--leave-one-cluster-out", "--model", save_tiny(tmp_path / "m", context_length=512),
                   "--out", tmp_path / "out", "--clusters", 3, "all", "--seeds", 4, 6, "--steps", 11, "--lr", 0.0123)
    given = seen["run"]
    assert (given["numbers"], given["seeds"]) == ([0, 3, "all"], [4, 6])
    assert given["settings"] == {"steps": 11, "lr": 0.0123, "batch_size": cluster_study.BATCH_SIZE}
    assert leave_out.cluster_study is cluster_study


def test_the_users_chats_reach_the_folds(tmp_path, monkeypatch):
    """--data in place of chats about the world, for every seed, and the base on the device that --device names."""
    monkeypatch.setattr(leave_out, "pick_device", lambda name: torch.device("meta"))
    seen = watch(monkeypatch, (cluster_study, "run"), stop=True)
    said = [{"role": "user", "content": "fox"}, {"role": "assistant", "content": "kite"}]
    chats = write(tmp_path / "chats.jsonl", *({"messages": said, "task": name, "cluster": name} for name in "abc"))
    run_until_stop("evaluate", "--leave-one-cluster-out", "--model", save_tiny(tmp_path / "m"), "--out",
                   tmp_path / "out", "--data", chats, "--clusters", 1, 7)
    given = seen["run"]
    assert given["numbers"] == [0, 1, "all"], "three clusters leave two to tune on"
    assert next(given["open_base"]()[0].parameters()).device.type == "meta" and str(chats) in given["command"]
    assert [row["cluster"] for row in given["make_rows"](3)] == ["a", "b", "c"]


def test_the_seeds_of_the_folds_make_the_chats(tmp_path, monkeypatch):
    """Without --data each seed has its own chats about the world."""
    seen = watch(monkeypatch, (cluster_study, "run"), stop=True)
    monkeypatch.setattr(leave_out, "numbers_of_clusters", lambda wanted, rows: [0])
    monkeypatch.setattr(cluster_study, "world_chats", lambda n_rows, seed: [n_rows, seed])
    run_until_stop("evaluate", "--leave-one-cluster-out", "--model", tmp_path, "--out", tmp_path / "out")
    assert seen["run"]["make_rows"](3) == [leave_out.N_ROWS, 3]


def test_plain_text_of_a_real_model_comes_in_windows(tmp_path, monkeypatch):
    """Where the model is real, check-data and evaluate cut plain text as pretrain does; other rows have the context."""
    monkeypatch.setattr(options, "REAL", 1)
    monkeypatch.setattr(options, "WINDOW", 40)
    found = []
    monkeypatch.setattr(data_report, "check_form", lambda form, make, rows, tokenizer, context, *rest: found.append(
        (form, context)) or [])
    seen = watch(monkeypatch, (measures, "token_windows"))
    model, data = save_tiny(tmp_path / "m"), write(tmp_path / "rows.jsonl", CHATS[0], TEXTS[0])
    assert call("check-data", "--model", model, "--data", data) == 0
    assert sorted(found) == [("completion", 96), ("text", 40)]
    assert call("evaluate", "--model", model, "--data", write(tmp_path / "text.jsonl", TEXTS[0])) == 0
    assert seen["token_windows"]["length"] == 39


def test_settings_of_check_data_arrive(tmp_path, monkeypatch, capsys):
    """--context is what a row may have, --batch-size the rows of the measured step."""
    seen = watch(monkeypatch, (data_report, "check_form"), (data_report, "estimate"))
    data = write(tmp_path / "rows.jsonl", *CHATS)
    assert call("check-data", "--model", save_tiny(tmp_path / "m"), "--data", data, "--context", 50, "--batch-size",
                3, "--show", 4) == 0
    assert (seen["check_form"]["context"], seen["check_form"]["n_show"]) == (50, 4)
    assert seen["estimate"]["batch_size"] == 3 and capsys.readouterr().out.count("\n  | ") == 4


def test_settings_of_templates_arrive(tmp_path, monkeypatch):
    """--split, --no-inverted and --seed reach instantiate; --templates is what is read."""
    seen = watch(monkeypatch, (templates, "read_templates"), (templates, "instantiate"))
    samples = Path(__file__).parents[1] / "data" / "samples"
    assert call("templates", "--data", samples / "labels.jsonl", "--templates", samples / "templates.json", "--out",
                tmp_path / "out.jsonl", "--split", "held-out", "--no-inverted", "--seed", 5) in (0, 2)
    assert str(seen["read_templates"]["path"]).endswith("templates.json")
    given = seen["instantiate"]
    assert (given["split"], given["inverted"], given["seed"]) == ("held-out", False, 5)


def test_settings_of_label_arrive(tmp_path, monkeypatch):
    """label compare: length, temperature, seed and batch size of the answers; the page's port."""
    seen, seeds = watch(monkeypatch, (label_page, "sample_pairs")), []
    watched = label_page.sample_pairs
    monkeypatch.setattr(label_page, "sample_pairs", lambda *args, **more: seeds.append(more["seed"]) or watched(
        *args, **more))
    seen_last = watch(monkeypatch, (label_page, "Server"), stop=True)
    prompts = write(tmp_path / "p.jsonl", *[{"prompt": row["prompt"]} for row in CHATS[:5]])
    run_until_stop("label", "compare", "--model", save_tiny(tmp_path / "m"), "--prompts", prompts, "--out",
                   tmp_path / "out.jsonl", "--max-new-tokens", 5, "--temperature", 0.6, "--seed", 5, "--batch-size", 2,
                   "--port", 4321)
    given = seen["sample_pairs"]
    assert (given["max_new_tokens"], given["temperature"], len(given["prompts"])) == (5, 0.6, 2)
    assert seeds == [5 * 1_000_003 + i for i in range(3)], "each batch has its own random numbers"
    assert seen_last["Server"]["port"] == 4321 and seen_last["Server"]["work"].task.seed == 5


def test_pairs_are_of_the_model_and_leave_it_room(tmp_path, capsys):
    """label compare refuses pairs that another model wrote, and names the prompt after which an answer has no room."""
    model, other = save_tiny(tmp_path / "m"), save_tiny(tmp_path / "other")
    prompts = write(tmp_path / "p.jsonl", {"prompt": CHATS[0]["prompt"]})
    write(tmp_path / "out.pairs.jsonl", {**PAIRS[0], "prompt": CHATS[0]["prompt"], "model": str(other)})
    command = ["label", "compare", "--model", model, "--prompts", prompts, "--out"]
    assert call(*command, tmp_path / "out.jsonl") == 2 and "answers of another model" in capsys.readouterr().err
    assert call(*command, tmp_path / "new.jsonl", "--max-new-tokens", 95) == 2
    assert f"{prompts}:1: the prompt has" in capsys.readouterr().err


def test_the_form_of_an_export_arrives(tmp_path, monkeypatch):
    """--gguf writes the one form, and its absence the other."""
    for flag, (module, name) in ((["--gguf"], (export_gguf, "export_gguf")), ([], (export, "export_pretrained"))):
        watch(monkeypatch, (module, name), stop=True)
        run_until_stop("export", "--model", save_tiny(tmp_path / "m"), "--out", tmp_path / f"out{len(flag)}", *flag)


def test_settings_of_tour_and_lesson_arrive(monkeypatch):
    """tour hands over all of its options; lesson its number and Jupyter's words."""
    seen = watch(monkeypatch, (tour, "run"), stop=True)
    run_until_stop("tour", "--out", "x", "--seed", 3, "--seeds", 4, 5, "--stages", "base", "--quick", "--resume")
    assert seen["run"] == {"out": "x", "seed": 3, "seeds": [4, 5], "stages": ["base"], "quick": True, "resume": True}
    seen = watch(monkeypatch, (lesson, "open_lesson"), stop=True)
    run_until_stop("lesson", 3, "--", "--no-browser")
    assert seen["open_lesson"] == {"number": 3, "jupyter_options": ["--no-browser"]}


# ---- the defaults that matter ----


def test_the_defaults_that_matter():
    """What a user gets who asks for nothing; each is a choice with a reason.

    No label smoothing: labels count as right. PPO's beta .05: a nat of KL costs
    little beside a reward of standard deviation 1. Replay .3: Ibrahim et al. 2024. BERT hides 15 %. Temperature 1 is
    the policy's own distribution in PPO, .7 suits a reader. A missing end costs 1, a standard deviation of the reward.
    """
    base = ["--model", "m", "--data", "d", "--out", "o"]
    assert parse(["dpo", *base]).label_smoothing == 0.0
    ppo = parse(["ppo", *base])
    assert (ppo.beta, ppo.target_kl, ppo.temperature, ppo.missing_eos_penalty) == (0.05, None, 1.0, 1.0)
    assert (ppo.epochs, ppo.iterations, ppo.batch_size, ppo.max_new_tokens) == (2, 20, 32, 96)
    assert parse(["pretrain", *base]).replay_share == 0.3 and parse(["mlm", *base]).hidden == 0.15
    assert [parse([verb, *base]).epochs for verb in ("pretrain", "sft", "reward", "dpo", "mlm", "classify")] == [
        1, 3, 1, 1, 3, 5]
    generate = parse(["generate", "--model", "m"])
    assert (generate.temperature, generate.top_k, generate.top_p) == (0.7, None, None)
    folds = parse(["evaluate", "--model", "m"])
    assert (folds.steps, folds.lr, folds.seeds, folds.clusters) == (90, 5e-4, [0], [1, 2, 4, "all"])
    assert run.ALPHA == 2 and TrainConfig(steps=1, lr=1.0).clip == 1.0
    toy = settle(parse(["sft", *base]), torch.nn.Linear(2, 2))
    assert (toy.lr, toy.batch_size, toy.accumulate) == (1.5e-3, 16, 1)
    assert reward_method.bradley_terry_loss.__defaults__ == (0.0,) and lora.ATTENTION == (
        "q_proj", "k_proj", "v_proj", "o_proj")
    assert hasattr(Attention, "forward")
