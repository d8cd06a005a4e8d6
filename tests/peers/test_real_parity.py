"""The real SmolLM2-135M-Instruct and MiniLM, in transformers and here: answers, perplexity, sentence vectors.

Needs tests/peers/requirements.txt and requirements-real.txt with its packages of weights; without them every test here
is skipped, and says so.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from minift.core.generate import generate, left_pad
from minift.core.logprobs import token_logprobs
from minift.errors import MiniftError
from minift.formats.pretrained import load_pretrained, locate
from minift.text.chat import encode_prompt
from minift.text.segments import collate_ids, encode_segments

transformers = pytest.importorskip(
    "transformers", reason="transformers is missing: pip install -r tests/peers/requirements.txt compares with it")

PROMPTS = """What is the capital of France?
What is 7 + 5?
Name three colours.
Say hello in Spanish.
Which animal barks?
How many days has a week?
What do bees make?
Write a sentence about a red kite.
Is water wet?
Who wrote Hamlet?
List two fruits.
What is the opposite of hot?
Where does the sun rise?
What is ice made of?
Give me a word that rhymes with cat.
Translate "good night" into French.
What is the largest ocean?
How many legs has a spider?
Finish the sentence: The old clock on the wall
What should I cook tonight?""".splitlines()
TEXT = """The harbour master kept two notebooks. In the first she wrote what every boat said it carried; in the second,
after the unloading, what it had carried. For eleven years the two agreed, apart from a crate of lemons that was counted
twice, and people in the town set their clocks by her. Then, one wet morning in March 1987, a boat with no name on its
bow asked for a berth, paid for 3 days in coins, and left at night without unloading anything at all."""


def real(name):
    """The path of a real model, or a loud skip."""
    try:
        return locate(name)
    except MiniftError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm2():
    """(our model, our tokenizer, transformers' model, which it reads from the same file by itself)."""
    path = real("smollm2")
    pytest.importorskip("gguf", reason="gguf is missing: pip install -r requirements-real.txt")
    pytest.importorskip("accelerate", reason="accelerate is missing: pip install -r tests/peers/requirements.txt")
    theirs = transformers.LlamaForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return *load_pretrained("smollm2"), theirs.eval()


def test_every_weight(smollm2):
    """The same 134,515,008 numbers after un-permuting and dequantising, bit for bit."""
    ours, _, theirs = smollm2
    names = {"model.embed_tokens.weight": "body.embed.weight", "model.norm.weight": "body.norm.weight"}
    mine, total = ours.state_dict(), 0
    for name, tensor in theirs.named_parameters():
        here = names.get(name) or name.replace("model.layers", "body.layers").replace("self_attn", "attn").replace(
            "input_layernorm", "attn_norm").replace("post_attention_layernorm", "mlp_norm")
        assert torch.equal(mine[here], tensor), name
        total += tensor.numel()
    assert total == 134_515_008 == sum(p.numel() for p in ours.parameters())


@torch.no_grad()
def test_greedy_answers(smollm2):
    """The same answers to 20 prompts, token by token, from one left-padded batch."""
    ours, tokenizer, theirs = smollm2
    rows = [encode_prompt(tokenizer, prompt) for prompt in PROMPTS]
    ids, mask = left_pad(rows, tokenizer.pad_id)
    out = generate(ours, ids, mask, max_new_tokens=16, temperature=0, eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id)
    expected = theirs.generate(ids, attention_mask=mask.long(), max_new_tokens=16, do_sample=False,
                               eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id)
    assert len(rows) == 20 and torch.equal(out.input_ids, expected)
    assert "Paris" in tokenizer.decode(out.input_ids[0][out.response_mask[0]])


@torch.no_grad()
def test_perplexity(smollm2):
    """The same perplexity of a text to 1e-4, and one that a language model has."""
    ours, tokenizer, theirs = smollm2
    ids = torch.tensor([tokenizer.encode(TEXT)])
    perplexity = math.exp(-token_logprobs(ours(ids), ids).mean())
    assert perplexity == pytest.approx(math.exp(theirs(ids, labels=ids).loss), rel=1e-4)
    assert 5 < perplexity < 100


@pytest.mark.filterwarnings("ignore:.*left aside")
@torch.no_grad()
def test_sentence_vectors():
    """MiniLM's vectors of sentences, with the padding that comes with a batch, are theirs to 1e-5; twins are near."""
    path = real("minilm")
    model, tokenizer = load_pretrained("minilm")
    theirs = transformers.BertModel.from_pretrained(path).eval()
    texts = ["A cat sleeps on the sofa.", "The kitten is dozing on the couch.", "Shares fell by 3% on Monday.",
             "Naïve?", TEXT.replace("\n", " ")]
    batch = collate_ids([encode_segments(tokenizer, text)[0] for text in texts], tokenizer.pad_id)
    auto = transformers.BertTokenizerFast.from_pretrained(path)(texts, padding=True, return_tensors="pt")
    assert torch.equal(auto["input_ids"], batch["input_ids"])
    hidden = theirs(**auto).last_hidden_state
    weights = auto["attention_mask"][..., None].float()
    expected = F.normalize((hidden * weights).sum(1) / weights.sum(1), dim=-1)
    vectors = model.vectors(**batch)
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    near = vectors @ vectors.T
    assert near[0, 1] > 0.6 > 0.3 > near[0, 2]
