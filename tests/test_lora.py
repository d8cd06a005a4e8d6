"""LoRA: the worked example, what trains and what does not, merging, the frozen base, and adapter files."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from minift.core.files import read_tensors, write_tensors
from minift.core.heads import LanguageModel, TokenScorer
from minift.core.logprobs import token_logprobs
from minift.core.step import make_optimizer
from minift.core.train import train
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import adapter
from minift.formats.checkpoint import load_model, save_model
from minift.formats.weights import plain_state_dict
from minift.methods import lora

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
IDS = torch.tensor([[1, 5, 3, 2, 8, 4], [7, 7, 0, 9, 6, 1]])


def make_model(seed=0, d_model=64, **options):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 10, "context_length": 16, "n_layer": 2, "n_head": 4, "d_model": d_model, "d_ff": 96}
    return LanguageModel(TransformerConfig(**sizes | options)).eval()


def make_tuned(seed=0, add_lora=lora.add_lora, rank=4, alpha=8, **options):
    """A model with LoRA whose A and B are both random, as after some training."""
    model = add_lora(make_model(seed), rank, alpha, **options)
    torch.manual_seed(seed + 100)
    for layer in layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.1)
    return model


def layers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, lora.LoRALinear)}


def loss_of(model):
    def loss_fn(batch):
        logprobs = token_logprobs(model(batch["input_ids"]), batch["input_ids"])
        return -logprobs.mean(), {"n_tokens": logprobs.numel()}
    return loss_fn


def by_hand(LoRALinear, dropout=0.0, alpha=2.0):
    """W = I, A = [1 2], B = [3 4]^T, rank 1, alpha 2."""
    linear = nn.Linear(2, 2, bias=False).double()
    linear.weight.data.copy_(torch.eye(2))
    layer = LoRALinear(linear, 1, alpha, dropout)
    layer.lora_A.data.copy_(torch.tensor([[1.0, 2.0]]))
    layer.lora_B.data.copy_(torch.tensor([[3.0], [4.0]]))
    return layer


# ---- one layer ----


def test_worked_example(LoRALinear=lora.LoRALinear):
    """x = [1, 1]: h = x + 2 * [3, 4] * 3 = [19, 25]; the change of the weight is [[6, 12], [8, 16]]; merged, h
    is the same."""
    layer, x = by_hand(LoRALinear).eval(), torch.ones(2, dtype=torch.float64)
    assert layer(x).tolist() == pytest.approx([19, 25], abs=1e-9)
    assert layer.delta().tolist() == [[6, 12], [8, 16]]
    layer.merge()
    assert layer.linear.weight.tolist() == [[7, 12], [8, 17]] and layer(x).tolist() == [19, 25]


def test_gradients_of_the_worked_example(LoRALinear=lora.LoRALinear):
    """For the sum of h: dB = [[6], [6]], dA = [[14, 14]], dx = [15, 29], and W has no gradient."""
    layer, x = by_hand(LoRALinear), torch.ones(2, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert layer.lora_B.grad.tolist() == [[6], [6]] and layer.lora_A.grad.tolist() == [[14, 14]]
    assert x.grad.tolist() == [15, 29] and layer.linear.weight.grad is None


def test_scale_is_alpha_over_rank(LoRALinear=lora.LoRALinear):
    """The change is (alpha / rank) B A: alpha 8 and rank 4 double it; twice the alpha is exactly twice the
    change, also merged."""
    torch.manual_seed(0)
    linear = nn.Linear(6, 5)
    one, two = LoRALinear(copy.deepcopy(linear), 4, 8), LoRALinear(copy.deepcopy(linear), 4, 16)
    for layer in (one, two):
        torch.manual_seed(1)
        nn.init.normal_(layer.lora_A)
        nn.init.normal_(layer.lora_B)
    torch.testing.assert_close(one.delta(), 2 * one.lora_B @ one.lora_A)
    assert torch.equal(two.delta(), 2 * one.delta())
    two.merge()
    torch.testing.assert_close(two.linear.weight - linear.weight, 4 * one.lora_B @ one.lora_A, rtol=0, atol=1e-5)


def test_a_starts_random_and_b_at_zero(LoRALinear=lora.LoRALinear):
    """A is uniform within 1 / sqrt(in), as nn.Linear's own weight; B is 0; both have the documented shapes."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(100, 30), 20, 40)
    assert layer.lora_A.shape == (20, 100) and layer.lora_B.shape == (30, 20) and (layer.lora_B == 0).all()
    assert layer.lora_A.abs().max() <= 0.1 and layer.lora_A.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.1)


def test_dropout_is_on_the_branch_only(LoRALinear=lora.LoRALinear):
    """With p = 1 in train mode the layer is the base, bit for bit; in eval mode p does not matter; merged has
    no dropout."""
    torch.manual_seed(0)
    linear, x = nn.Linear(6, 5), torch.randn(3, 6)
    base = linear(x)
    all_dropped, none_dropped = (LoRALinear(copy.deepcopy(linear), 2, 4, p) for p in (1.0, 0.0))
    for layer in (all_dropped, none_dropped):
        torch.manual_seed(1)
        nn.init.normal_(layer.lora_A)
        nn.init.normal_(layer.lora_B)
    assert torch.equal(all_dropped.train()(x), base) and not torch.equal(none_dropped.train()(x), base)
    assert torch.equal(all_dropped.eval()(x), none_dropped.eval()(x))
    all_dropped.merge()
    with torch.no_grad():
        torch.testing.assert_close(all_dropped.train()(x), none_dropped(x), rtol=0, atol=1e-5)


def test_half_dropout_has_the_right_mean(LoRALinear=lora.LoRALinear):
    """With p = 0.5 outputs differ from call to call, and their mean is the output without dropout."""
    torch.manual_seed(0)
    layer = by_hand(LoRALinear, dropout=0.5)
    outputs = layer(torch.ones(4000, 2, dtype=torch.float64))
    assert outputs.std(0).min() > 1
    expected, five_sigma = torch.tensor([19.0, 25.0], dtype=torch.float64), 5 * 20 / math.sqrt(4000)
    torch.testing.assert_close(outputs.mean(0), expected, rtol=0, atol=five_sigma)


def test_switched_off_it_is_the_base(LoRALinear=lora.LoRALinear):
    """Not enabled, the layer is the base's, bit for bit, merged or not; merged, it refuses to be trained."""
    layer, x = by_hand(LoRALinear), torch.tensor([0.7, -1.3], dtype=torch.float64)
    for merge in (False, True):
        if merge:
            layer.merge()
        layer.enabled = False
        assert torch.equal(layer(x), torch.eye(2, dtype=torch.float64) @ x)
        layer.enabled = True
    with pytest.raises(MiniftError, match="unmerge"):
        layer.train()(x)
    with torch.no_grad():
        assert torch.equal(layer(x), layer.eval()(x))


@pytest.mark.parametrize("bad", [{"rank": 0}, {"rank": -1}, {"rank": 5}, {"alpha": 0}, {"alpha": -1},
                                 {"alpha": float("nan")}, {"dropout": -0.1}, {"dropout": 1.5}])
def test_bad_settings_are_refused(bad, LoRALinear=lora.LoRALinear):
    """rank within the sides of the weight, alpha positive, dropout within [0, 1]: else MiniftError naming the value."""
    with pytest.raises(MiniftError, match=list(bad)[0]):
        LoRALinear(nn.Linear(4, 6), **{"rank": 2, "alpha": 4} | bad)
    with pytest.raises(MiniftError, match="Embedding"):
        LoRALinear(nn.Embedding(4, 4), 2, 4)


def test_a_bfloat16_base_merges_to_tolerance(LoRALinear=lora.LoRALinear):
    """A and B stay float32 beside a bfloat16 weight; the merged layer agrees to the precision of bfloat16."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(32, 32).bfloat16(), 4, 4).eval()
    nn.init.normal_(layer.lora_B, std=0.1)
    x = torch.randn(5, 32).bfloat16()
    before = layer(x)
    assert layer.lora_A.dtype == torch.float32 and before.dtype == torch.bfloat16
    layer.merge()
    torch.testing.assert_close(layer(x), before, rtol=0, atol=2e-2)


# ---- into a model ----


def test_fresh_lora_is_the_identity(add_lora=lora.add_lora):
    """B = 0, so a model with fresh LoRA gives the base's logits, bit for bit."""
    model = make_model()
    base = model(IDS)
    assert torch.equal(add_lora(model, 4, 8)(IDS), base)


def test_first_backward_reaches_b_only(add_lora=lora.add_lora):
    """The gradient of A is B^T (...) = 0 on the first backward pass, exactly, that of B is not; after a step
    both are not."""
    model = add_lora(make_model(), 4, 8)
    optimizer = make_optimizer(model, lr=1e-2)
    loss_of(model)({"input_ids": IDS})[0].backward()
    assert all((layer.lora_A.grad == 0).all() and (layer.lora_B.grad != 0).any() for layer in layers(model).values())
    optimizer.step()
    optimizer.zero_grad()
    loss_of(model)({"input_ids": IDS})[0].backward()
    assert all((layer.lora_A.grad != 0).any() and (layer.lora_B.grad != 0).any() for layer in layers(model).values())


def test_only_a_and_b_train(add_lora=lora.add_lora):
    """Two trainable tensors a target; three steps with weight decay leave every other tensor bit-equal, without
    gradient."""
    model = add_lora(make_model(), 4, 8)
    before = copy.deepcopy(model.state_dict())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 8 and all(name.endswith(("lora_A", "lora_B")) for name in trainable)
    n_in_optimizer = sum(len(group["params"]) for group in make_optimizer(model, lr=0.1).param_groups)
    assert n_in_optimizer == 16
    train(model, [{"input_ids": IDS}], loss_of(model), steps=3, lr=1e-2, weight_decay=0.1, progress=False)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trainable), name
    assert all(p.grad is None for name, p in model.named_parameters() if name not in trainable)


def test_number_of_trained_weights(add_lora=lora.add_lora):
    """The sum of r (in + out): width 64, 4 projections, rank 4, 2 layers make 4096; fewer key heads make fewer."""
    def count(model):
        return sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count(add_lora(make_model(), 4, 8)) == 4096
    assert count(add_lora(make_model(n_kv_head=2), 4, 8)) == 2 * 4 * (128 + 96 + 96 + 128)
    assert count(add_lora(make_model(), 4, 8, targets=("up_proj",))) == 2 * 4 * (64 + 96)


def test_rank_is_a_bound(add_lora=lora.add_lora):
    """After training the change of a weight has at most `rank` singular values above rounding: s[r] / s[0] <
    1e-10 in float64."""
    model = add_lora(make_model().double(), 3, 6)
    train(model, [{"input_ids": IDS}], loss_of(model), steps=5, lr=1e-2, progress=False)
    for layer in layers(model).values():
        s = torch.linalg.svdvals(layer.delta())
        assert s[0] > 0 and s[2] / s[0] > 1e-8 and s[3] / s[0] < 1e-10


@pytest.mark.parametrize("target", TARGETS)
def test_each_projection_can_be_chosen(target, add_lora=lora.add_lora):
    """Chosen alone, only that projection of every layer changes; the others, the head and the embeddings stay plain."""
    model, base = add_lora(make_model(), 2, 4, targets=(target,)), make_model()
    assert set(layers(model)) == {f"body.layers.{i}.attn.{target}" for i in range(2)}
    for layer in layers(model).values():
        nn.init.normal_(layer.lora_B)
    lora.merge_lora(model)
    for name, tensor in plain_state_dict(model).items():
        assert torch.equal(tensor, base.state_dict()[name]) == (target not in name), name


def test_one_layer_can_be_chosen(add_lora=lora.add_lora):
    """A target may name one layer by the end of its path; a string is one target."""
    assert set(layers(add_lora(make_model(), 2, 4, targets=("layers.1.attn.q_proj",)))) == {"body.layers.1.attn.q_proj"}
    assert len(layers(add_lora(make_model(), 2, 4, targets="v_proj"))) == 2


def test_default_targets_are_the_four_projections(add_lora=lora.add_lora):
    """Without targets: query, key, value and output projection of every layer, nothing else."""
    expected = {f"body.layers.{i}.attn.{target}" for i in range(2) for target in TARGETS}
    assert set(layers(add_lora(make_model(), 2, 4))) == expected


def test_what_cannot_be_added(add_lora=lora.add_lora):
    """An unknown target, none at all, a tied head, too large a rank, LoRA twice: MiniftError, and the model is
    untouched."""
    model = make_model()
    names = [name for name, _ in model.named_modules()]
    for options, message in (({"targets": ("q_proj", "q_prj")}, "did you mean 'q_proj'.*down_proj"),
                             ({"targets": ()}, "no linear"),
                             ({"targets": ("q_proj", "embed")}, "no linear layer is called 'embed'"),
                             ({"targets": ("head",)}, "tied"), ({"rank": 65}, "rank is 65")):
        with pytest.raises(MiniftError, match=message):
            add_lora(model, **{"rank": 2, "alpha": 4} | options)
        assert [name for name, _ in model.named_modules()] == names and all(p.requires_grad for p in model.parameters())
    add_lora(model, 2, 4)
    with pytest.raises(MiniftError, match="has LoRA already"):
        add_lora(model, 2, 4)


# ---- merge ----


def test_merged_is_the_same_function(merge_lora=lora.merge_lora):
    """After merging the logits are the same to 1e-5, and not the base's."""
    model = make_tuned()
    with lora.without_lora(model):
        base = model(IDS)
    before = model(IDS)
    merge_lora(model)
    torch.testing.assert_close(model(IDS), before, rtol=0, atol=1e-5)
    assert (before - base).abs().max() > 1e-3 and (model(IDS) - base).abs().max() > 1e-3


def test_merging_twice_is_merging_once(merge_lora=lora.merge_lora):
    """A second merge changes no bit."""
    model = make_tuned()
    merge_lora(model)
    once = copy.deepcopy(model.state_dict())
    merge_lora(model)
    assert all(torch.equal(tensor, once[name]) for name, tensor in model.state_dict().items())


def test_unmerge_gives_the_very_same_weights_back(merge_lora=lora.merge_lora, unmerge_lora=lora.unmerge_lora):
    """Merging and unmerging, also twice in a row, ends with the bits it began with; unmerging what is not
    merged does nothing."""
    model = make_tuned()
    before, logits = copy.deepcopy(model.state_dict()), model(IDS)
    unmerge_lora(model)
    for _ in range(2):
        merge_lora(model)
        unmerge_lora(model)
        unmerge_lora(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(IDS), logits)


def test_training_while_merged_is_refused(merge_lora=lora.merge_lora, unmerge_lora=lora.unmerge_lora):
    """A merged branch is not in the forward pass, so training mode with gradients raises; generating and
    unmerging are fine."""
    model = make_tuned()
    merge_lora(model)
    model.train()
    with pytest.raises(MiniftError, match="unmerge_lora"):
        model(IDS)
    with torch.no_grad():
        model(IDS)
    unmerge_lora(model)
    model(IDS)


def test_adapter_with_nan_is_not_merged(merge_lora=lora.merge_lora):
    """One NaN in the last layer: nothing is merged anywhere, and the layer is named."""
    model = make_tuned()
    before = {name: layer.linear.weight.clone() for name, layer in layers(model).items()}
    model.body.layers[1].attn.o_proj.lora_B.data[0, 0] = float("nan")
    with pytest.raises(MiniftError, match=r"layers\.1\.attn\.o_proj"):
        merge_lora(model)
    for name, layer in layers(model).items():
        assert torch.equal(layer.linear.weight, before[name]) and not layer.merged


def test_eval_changes_no_weight():
    """eval() and train() leave every tensor of the model as it is: nothing merges unasked."""
    model = make_tuned().train()
    before = copy.deepcopy(model.state_dict())
    for mode in (False, True):
        model.train(mode)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merged_model_is_saved_as_a_plain_one(tmp_path, merge_lora=lora.merge_lora):
    """The folder of a merged model has the keys of a model without LoRA and gives the same logits; unmerged it
    is refused."""
    model = make_tuned()
    with pytest.raises(MiniftError, match="merge_lora"):
        save_model(model, None, tmp_path / "model")
    merge_lora(model)
    save_model(model, None, tmp_path / "model")
    plain, _ = load_model(tmp_path / "model")
    assert not layers(plain) and plain.state_dict().keys() == make_model().state_dict().keys()
    torch.testing.assert_close(plain(IDS), model(IDS), rtol=0, atol=1e-6)


def test_model_without_lora_is_said(merge_lora=lora.merge_lora, unmerge_lora=lora.unmerge_lora,
                                    without_lora=lora.without_lora):
    """Merging, unmerging or switching off what is not there is a mistake, and is named."""
    for act in (merge_lora, unmerge_lora, lambda model: without_lora(model).__enter__(), lora.base_reference):
        with pytest.raises(MiniftError, match="no LoRA"):
            act(make_model())


# ---- the frozen base ----


@pytest.mark.parametrize("merged", [False, True])
def test_without_lora_is_the_base_exactly(merged, without_lora=lora.without_lora):
    """Inside the block the logits are the base's, bit for bit, merged or not; afterwards those with LoRA, also
    on an error."""
    base, model = make_model()(IDS), make_tuned()
    if merged:
        lora.merge_lora(model)
    tuned = model(IDS)
    assert (tuned - base).abs().max() > 1e-3
    with without_lora(model):
        assert torch.equal(model(IDS), base)
        with without_lora(model):
            pass
        assert torch.equal(model(IDS), base)
    assert torch.equal(model(IDS), tuned)
    with pytest.raises(KeyError), without_lora(model):
        raise KeyError
    assert torch.equal(model(IDS), tuned)


def test_base_reference_has_the_log_probs_of_the_base(base_reference=lora.base_reference):
    """The reference of a tuned model gives the base's log-probabilities, without gradient, and does not follow
    training."""
    model = make_tuned(dropout=0.3).train()
    reference = base_reference(model)
    expected = token_logprobs(make_model()(IDS), IDS)
    torch.testing.assert_close(reference(IDS), expected.detach(), rtol=0, atol=1e-6)
    assert not reference(IDS).requires_grad and model.training
    train(model, [{"input_ids": IDS}], loss_of(model), steps=2, lr=0.1, progress=False)
    torch.testing.assert_close(reference(IDS), expected.detach(), rtol=0, atol=1e-6)
    assert (token_logprobs(model.eval()(IDS), IDS) - expected).abs().max() > 1e-3


# ---- adapter files ----


def keys_of(path):
    return set(read_tensors(path / "adapter_model.safetensors")[0])


def test_adapter_file_holds_the_adapter_only(tmp_path, save_adapter=adapter.save_adapter):
    """The keys are PEFT's for a Llama, 2 a target, no tensor of the base; the size is 4 bytes a number and a
    small header."""
    save_adapter(make_tuned(dropout=0.1), tmp_path, base="some/where")
    expected = {f"base_model.model.model.layers.{i}.self_attn.{target}.lora_{part}.weight"
                for i in range(2) for target in TARGETS for part in "AB"}
    assert keys_of(tmp_path) == expected
    assert 4 * 4096 < (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * 4096 + 4000
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["peft_type"], config["r"], config["lora_alpha"], config["lora_dropout"]) == ("LORA", 4, 8, 0.1)
    assert config["target_modules"] == sorted(TARGETS) and config["base_model_name_or_path"] == "some/where"


def test_adapter_comes_back_exactly(tmp_path, save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter):
    """Loaded into a fresh copy of the base, or into one that has LoRA, the logits are the same bits; only LoRA
    is trainable."""
    model = make_tuned(dropout=0.25)
    save_adapter(model, tmp_path)
    fresh = load_adapter(make_model(), tmp_path)
    assert torch.equal(fresh(IDS), model(IDS)) and layers(fresh)["body.layers.0.attn.q_proj"].dropout.p == 0.25
    assert all(p.requires_grad == ("lora_" in name) for name, p in fresh.named_parameters())
    assert torch.equal(load_adapter(lora.add_lora(make_model(), 4, 1), tmp_path)(IDS), model(IDS))


def test_adapter_of_one_layer_comes_back(tmp_path, save_adapter=adapter.save_adapter,
                                         load_adapter=adapter.load_adapter):
    """LoRA in one layer only: target_modules names it in full, and only that layer gets LoRA again."""
    model = make_tuned(targets=("layers.1.attn.v_proj",))
    save_adapter(model, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["target_modules"] == ["model.layers.1.self_attn.v_proj"]
    fresh = load_adapter(make_model(), tmp_path)
    assert set(layers(fresh)) == {"body.layers.1.attn.v_proj"} and torch.equal(fresh(IDS), model(IDS))


def test_new_head_goes_along(tmp_path, save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter):
    """A reward model's unfrozen score head is saved with the adapter and comes back trainable."""
    def make(seed):
        torch.manual_seed(seed)
        return TokenScorer(make_model().body).eval()
    model = lora.add_lora(make(1), 4, 8)
    model.score.requires_grad_(True)
    def loss_fn(batch):
        return model(batch["input_ids"]).square().mean(), {"n_tokens": 1}
    train(model, [{"input_ids": IDS}], loss_fn, steps=3, lr=1e-2, progress=False)
    save_adapter(model.eval(), tmp_path)
    assert {"base_model.model.score.weight", "base_model.model.score.bias"} < keys_of(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["modules_to_save"] == ["score"] and config["task_type"] == "SEQ_CLS"
    fresh = load_adapter(make(2), tmp_path)
    assert torch.equal(fresh(IDS), model(IDS))
    assert fresh.score.weight.requires_grad and not fresh.body.embed.weight.requires_grad


def test_unfrozen_norms_go_along(tmp_path, save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter):
    """What is trained inside the body is saved too, and is not part of the base's fingerprint."""
    model = make_tuned()
    model.body.norm.weight.requires_grad_(True).data.mul_(2)
    model.body.layers[0].attn_norm.weight.requires_grad_(True).data.mul_(3)
    save_adapter(model, tmp_path)
    prefix = "base_model.model.model."
    assert {prefix + "norm.weight", prefix + "layers.0.input_layernorm.weight"} < keys_of(tmp_path)
    assert torch.equal(load_adapter(make_model(), tmp_path)(IDS), model(IDS))


def test_adapter_for_another_base_is_refused(tmp_path, save_adapter=adapter.save_adapter,
                                             load_adapter=adapter.load_adapter):
    """The same shapes but other weights: MiniftError unless forced, and the model stays without LoRA."""
    save_adapter(make_tuned(), tmp_path)
    other = make_model(seed=5)
    with pytest.raises(MiniftError, match="other weights"):
        load_adapter(other, tmp_path)
    assert not layers(other) and all(p.requires_grad for p in other.parameters())
    assert len(layers(load_adapter(other, tmp_path, force=True))) == 8


def test_adapter_that_does_not_fit_is_refused(tmp_path, save_adapter=adapter.save_adapter,
                                              load_adapter=adapter.load_adapter):
    """Another width, another number of layers, another rank, other targets: MiniftError, and the model is untouched."""
    save_adapter(make_tuned(), tmp_path)
    for model, message in ((make_model(d_model=32), "another model"), (make_model(n_layer=1), "unexpected"),
                           (lora.add_lora(make_model(), 3, 8), "another model"),
                           (lora.add_lora(make_model(), 4, 8, targets=("q_proj", "up_proj")), "missing"),
                           (nn.Linear(4, 4), "does not fit")):
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(MiniftError, match=message):
            load_adapter(model, tmp_path, force=True)
        assert model.state_dict().keys() == before.keys()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merged_models_and_adapter_files(tmp_path, save_adapter=adapter.save_adapter,
                                         load_adapter=adapter.load_adapter):
    """While LoRA is merged neither saving nor loading an adapter is possible; the message says to unmerge."""
    model = make_tuned()
    save_adapter(model, tmp_path)
    lora.merge_lora(model)
    for act in (save_adapter, lambda model, path: load_adapter(model, path, force=True)):
        with pytest.raises(MiniftError, match="unmerge_lora"):
            act(model, tmp_path)


def test_damaged_adapter_is_refused(tmp_path, save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter):
    """A missing or truncated file, a flipped bit, a NaN, a config of another adapter: MiniftError naming the
    folder or file."""
    with pytest.raises(MiniftError, match=r"adapter_config\.json"):
        load_adapter(make_model(), tmp_path)
    save_adapter(make_tuned(), tmp_path)
    config_file, tensor_file = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    config, data = config_file.read_text(encoding="utf-8"), tensor_file.read_bytes()
    flipped = data[:-50] + bytes([data[-50] ^ 1]) + data[-49:]
    tensors, metadata = read_tensors(tensor_file)
    poisoned = {name: tensor.fill_(float("nan")) for name, tensor in tensors.items()}
    for text, content, message in ((config, data[:-10], "truncated"), (config, flipped, "corrupted"),
                                   (config.replace('"r": 4', '"r": 2'), data, "two different adapters"),
                                   (config.replace("LORA", "IA3"), data, "LoRA adapter"),
                                   (config.replace('"r": 4', '"r": null'), data, "r is None"),
                                   (config.replace('"bias": "none"', '"bias": "all"'), data, "bias"),
                                   (config.replace('"r"', '"use_dora": true, "r"'), data, "use_dora")):
        config_file.write_text(text, encoding="utf-8")
        tensor_file.write_bytes(content)
        with pytest.raises(MiniftError, match=message):
            load_adapter(make_model(), tmp_path)
    config_file.write_text(config, encoding="utf-8")
    write_tensors(tensor_file, poisoned, metadata)
    with pytest.raises(MiniftError, match="NaN"):
        load_adapter(make_model(), tmp_path)


def test_rank_stabilised_adapter_gets_its_scale(tmp_path, save_adapter=adapter.save_adapter,
                                                load_adapter=adapter.load_adapter):
    """A file that says use_rslora has the scale alpha / sqrt(r): 8 and 4 make 4, not 2."""
    save_adapter(make_tuned(), tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"r": 4', '"use_rslora": true, "r": 4'), encoding="utf-8")
    assert {layer.scale for layer in layers(load_adapter(make_model(), tmp_path)).values()} == {4.0}


# ---- a base in bfloat16 ----


def half_step(x):
    """Half the distance of two neighbouring bfloat16 numbers (8 bits) at each x."""
    return 2.0 ** (torch.frexp(x).exponent - 9).double()


def test_a_bfloat16_base_keeps_its_lora_in_float32(LoRALinear=lora.LoRALinear):
    """A and B are float32, the change is computed in float32 and rounded once: where the merged weight is stored.

    Against float64 the merged weight is off by half a bfloat16 step at most; the output is in the base's type.
    """
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(48, 40, dtype=torch.bfloat16), rank=8, alpha=24)
    assert layer.lora_A.dtype == layer.lora_B.dtype == torch.float32
    nn.init.normal_(layer.lora_B)
    assert layer(torch.randn(2, 48, dtype=torch.bfloat16)).dtype == torch.bfloat16
    exact = (layer.linear.weight.double() + 3 * (layer.lora_B.double() @ layer.lora_A.double())).detach()
    layer.merge()
    assert ((layer.linear.weight.double() - exact).abs() <= half_step(exact) + 1e-6).all()


def test_the_branch_of_a_bfloat16_base_is_added_once_rounded(LoRALinear=lora.LoRALinear):
    """The branch is computed in float32, not in bfloat16: its error is that of one rounding, not of three."""
    torch.manual_seed(0)
    layer = LoRALinear(nn.Linear(256, 64, dtype=torch.bfloat16), rank=64, alpha=64)
    nn.init.zeros_(layer.linear.weight)
    nn.init.zeros_(layer.linear.bias)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(64, 256, dtype=torch.bfloat16)
    exact = (x.double() @ layer.lora_A.double().T @ layer.lora_B.double().T).detach()
    assert ((layer(x).double() - exact).abs() <= half_step(exact) + 1e-5).all()
