"""New tokens: old rows and old logits stay, new rows are trained and travel with the adapter."""

import pytest
import torch

from minift.core import resize
from minift.core.heads import LanguageModel, MaskedLanguageModel, SequenceClassifier, TokenScorer
from minift.core.transformer import TransformerConfig
from minift.errors import MiniftError
from minift.formats import adapter
from minift.formats.checkpoint import load_model, save_model
from minift.methods import lora

IDS = torch.tensor([[1, 5, 3, 2, 8, 4]])
CONFIG = TransformerConfig(10, 16, 2, 4, 32, 48)
BERT = TransformerConfig(10, 16, 2, 4, 32, 48, causal=False, norm_first=False, norm="layernorm", positions="learned",
                         mlp="gelu", bias=True)


def models():
    torch.manual_seed(0)
    made = {"tied": LanguageModel(CONFIG), "untied": LanguageModel(CONFIG, False), "masked": MaskedLanguageModel(BERT)}
    torch.nn.init.normal_(made["masked"].head.decoder.bias)
    return made


@pytest.mark.parametrize("kind", ["tied", "untied", "masked"])
def test_old_rows_and_logits_stay(kind, tmp_path, resize_vocabulary=resize.resize_vocabulary):
    """Bit for bit; the new tokens' rows are the mean, so their logits are the mean logit; the folder opens again."""
    model = models()[kind].eval()
    rows, logits = model.body.embed.weight.detach().clone(), model(IDS)
    assert resize_vocabulary(model, 13) is model and model.config.vocab_size == model.body.config.vocab_size == 13
    found = model(IDS)
    assert found.shape[-1] == 13 and torch.equal(model.body.embed.weight[:10], rows)
    torch.testing.assert_close(found[..., :10], logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(found[..., 10:], logits.mean(-1, keepdim=True).expand(-1, -1, 3), atol=1e-5, rtol=0)
    model(torch.tensor([[12, 10]]))
    output = {"masked": lambda: model.head.decoder}.get(kind, lambda: model.head)()
    assert (output.weight is model.body.embed.weight) == (kind != "untied") and output.out_features == 13
    save_model(model, None, tmp_path)
    assert torch.equal(load_model(tmp_path)[0](IDS), found)


def test_other_heads_and_limits(resize_vocabulary=resize.resize_vocabulary):
    """A classifier's labels are no tokens, even when there are as many; nothing shrinks; the same size is no change."""
    classifier = SequenceClassifier(models()["tied"].body, 10)
    assert resize_vocabulary(classifier, 12).head.out_features == 10 and classifier.body.embed.weight.shape == (12, 32)
    model = models()["tied"]
    embed = model.body.embed.weight
    assert resize_vocabulary(model, 10).body.embed.weight is embed
    with pytest.raises(MiniftError, match="shrink to 9"):
        resize_vocabulary(model, 9)


@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_an_adapter_carries_the_new_rows(kind, tmp_path, resize_vocabulary=resize.resize_vocabulary,
                                         save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter):
    """LoRA, three new tokens, a step of training: from the adapter alone a fresh base becomes the same model."""
    model = resize_vocabulary(lora.add_lora(models()[kind], 2, 4), 13)
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert trained == {"body.embed.weight"} | ({"head.weight"} if kind == "untied" else set())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(torch.tensor([[12, 3, 11]])).square().mean().backward()
    optimizer.step()
    save_adapter(model, tmp_path)
    again = load_adapter(models()[kind], tmp_path)
    ids = torch.tensor([[10, 12, 3, 11, 4]])
    assert torch.equal(again(ids), model(ids)) and again.config.vocab_size == 13
    other = LanguageModel(TransformerConfig(10, 16, 2, 4, 16, 48), kind == "tied")
    with pytest.raises(MiniftError, match="another model"):
        load_adapter(other, tmp_path)
    assert other.config.vocab_size == 10


@pytest.mark.parametrize("make", [
    lambda: models()["masked"], lambda: TokenScorer(models()["tied"].body),
    lambda: SequenceClassifier(models()["masked"].body, 3)], ids=["masked", "reward model", "classifier"])
def test_new_rows_of_other_models_travel_too(make, tmp_path, resize_vocabulary=resize.resize_vocabulary,
                                             save_adapter=adapter.save_adapter, load_adapter=adapter.load_adapter):
    """A model whose output layer is no matrix of the vocabulary, or one that is always tied, is the same again."""
    torch.manual_seed(1)
    model = resize_vocabulary(lora.add_lora(make(), 2, 4), 13).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    save_adapter(model, tmp_path)
    torch.manual_seed(1)
    again = load_adapter(make(), tmp_path).eval()
    ids = torch.tensor([[10, 12, 3, 11, 4]])
    assert again.config.vocab_size == 13 and torch.equal(again(ids), model(ids))
