"""check(): which tests it finds for a name, what it says of right, wrong, unfinished and ill-formed functions."""

import ast
import random

import pytest
import torch

from minift.core import attention, logprobs
from minift.errors import MiniftError
from minift.learn import check as module
from minift.learn.check import check, examine
from minift.learn.explain import HINTS
from minift.text import batches, jsonl


def unshifted(logits, input_ids):
    print("called")
    return logits.log_softmax(-1)[:, 1:].gather(-1, input_ids[:, 1:, None])[..., 0]


def said(capsys, **functions):
    check(**functions)
    return capsys.readouterr().out


def test_the_library_keeps_its_laws(capsys):
    """For the library's own function every law holds, and nothing else is printed; cases and tmp_path are supplied."""
    text = said(capsys, token_logprobs=logprobs.token_logprobs)
    assert text.startswith("token_logprobs: 3 of 3 laws hold\n") and text.count("  holds  ") == 3
    assert all(law.n_cases and not law.failures for law in examine({"visible": attention.visible}))
    assert "laws hold" in said(capsys, read_jsonl=jsonl.read_jsonl)


@pytest.mark.parametrize("n_laws, n_held, says", [(1, 1, "1 of 1 law holds"), (1, 0, "0 of 1 laws hold"),
                                                  (3, 1, "1 of 3 laws holds"), (3, 2, "2 of 3 laws hold")])
def test_the_heading_counts_the_laws_that_hold(n_laws, n_held, says):
    """The first line gives the number of laws kept and of all, in the singular where there is one."""
    failure = module.Failure(["found: 1"], unwritten=False, printed="")
    laws = [module.Law("test_f.py", "test_f", "A law.", frozenset("f"), 1, [failure] * (i >= n_held))
            for i in range(n_laws)]
    assert module.report(laws, {"f": abs}).startswith(f"f: {says}\n")


def test_a_wrong_function_is_told_why(capsys):
    """Under a failed law stand the test's line, the values found and expected, and the mistake that it looks like."""
    text = said(capsys, token_logprobs=unshifted)
    assert "token_logprobs: 0 of 3 laws hold" in text and "Traceback" not in text
    words = " ".join(text.split())                      # the report is folded
    assert "found: [[-0.693147" in words and "expected: [[-1.38629, -0.693147]] of shape (1, 2)" in words
    assert "this looks like: the shift by one" in text and "Your function printed:\ncalled" in text


def test_hints_can_be_left_out(capsys):
    """Where finding the mistake is the exercise, the report gives values and no guess."""
    check(hints=False, token_logprobs=unshifted)
    text = capsys.readouterr().out
    assert "found: [[-0.693147" in text and "this looks like" not in text


def test_an_unwritten_function_is_given_its_laws(capsys):
    """NotImplementedError is no failure: the laws are listed, without a mark."""
    def unwritten(logits, input_ids):
        raise NotImplementedError
    text = said(capsys, token_logprobs=unwritten)
    assert "not written yet" in text and "Odds 1 : 3" in text and "FAILS" not in text and "Error" not in text


@pytest.mark.parametrize("wrong, says", [
    (lambda logits, input_ids: None, "is a return missing?"),
    (lambda logits: logits, "the library's is called as token_logprobs(logits, input_ids)"),
    (lambda logits, input_ids: logits.nonsense, "error: AttributeError")])
def test_mistakes_of_form_are_named(wrong, says, capsys):
    """No value, other arguments, an error inside: one line says so, and there is no hint about the formula."""
    text = said(capsys, token_logprobs=wrong)
    assert says in text and "this looks like" not in text


def test_an_error_is_placed_in_the_learners_code(capsys):
    """The report names the line of the cell at which the error arose."""
    source = "def mine(logits, input_ids):\n    shifted = logits[:, :-1]\n    return shifted @ input_ids\n"
    space = {}
    exec(compile(source, "/somewhere/cell.py", "exec"), space)
    assert "at your line 3:" in said(capsys, token_logprobs=space["mine"])


def test_refusals_are_laws_too(capsys):
    """A function that lets a bad input pass is told that it should have refused it, in how many cases."""
    def cuts(rows, pad_value, length=None):
        return batches.pad([row[:length] for row in rows], pad_value, length)
    text = said(capsys, pad=cuts)
    assert "DID NOT RAISE" in text and "let pass" in text and "laws hold" in text


def test_a_refusal_of_another_kind_is_told_apart(capsys):
    """Another error than MiniftError, and a message without the words that the law asks for, are named as such."""
    def refusing(error, words):
        def make_labels(input_ids, response_mask):
            if len(input_ids) != len(response_mask):
                raise error(words)
            return [i if mine else -100 for i, mine in zip(input_ids, response_mask)]
        return " ".join(said(capsys, make_labels=make_labels).split())
    assert "it must be a MiniftError (minift.errors)" in refusing(ValueError, "response_mask is short")
    assert "message must hold 'response_mask'; it is 'too short'" in refusing(MiniftError, "too short")
    assert "1 of 1 law holds" in refusing(MiniftError, "response_mask is short")


def test_what_was_said_is_pointed_to(capsys):
    """A second law that fails for the same reason says so; numbers that print alike are told apart."""
    text = said(capsys, perplexity=lambda nll_sum, n_tokens: n_tokens / 0)
    assert text.count("(as above)") == 1 and text.count("error: TypeError") == 1
    text = said(capsys, token_logprobs=lambda logits, input_ids: logprobs.token_logprobs(logits.float(), input_ids))
    assert "they differ by up to" in text and "arithmetic in float32" in text


def test_unknown_names_are_refused():
    """An unknown name is a MiniftError that offers the nearest; so are no name, and a thing that is no function."""
    with pytest.raises(MiniftError, match="token_logprobs"):
        check(tokn_logprobs=unshifted)
    with pytest.raises(MiniftError, match="as in check"):
        check()
    with pytest.raises(MiniftError, match="not a function"):
        check(token_logprobs=3)


def test_it_leaves_no_trace():
    """The notebook's random numbers go on as if nothing had been checked."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    state = random.getstate()
    examine({"masked_mean": logprobs.masked_mean})
    assert torch.equal(torch.rand(1), expected) and random.getstate() == state


def test_hints_belong_to_tests():
    """Every hint stands under the name of a test that exists, and some part of it is a sentence."""
    names = {node.name for file in module.TESTS.glob("test_*.py")
             for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}
    assert HINTS.keys() <= names
    assert all(isinstance(hint, str) and len(hint) > 20 for hints in HINTS.values() for hint in hints.values())
