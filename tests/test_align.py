"""The story setting and the methods in it: what is judged, what is learned, and that the arena itself stays."""

import copy

import pytest
import torch

from minift.studies import align, stories
from minift.text.answers import sample_answers
from minift.text.chat import encode_answer, encode_prompt
from minift.world.instructions import story_requests

SETTINGS = {"iterations": 4, "batch_size": 8, "steps": 4}


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    """A tiny arena: its model has hardly learned to write."""
    folder = tmp_path_factory.mktemp("arena")
    small = {"sft_steps": 2, "pairs": 16, "valid_pairs": 8, "max_new_tokens": 24}
    made = stories.make_arena(folder, 0, **small)
    again = stories.make_arena(folder, 0, **small)
    assert all(torch.equal(a, b) for a, b in zip(made.policy.state_dict().values(), again.policy.state_dict().values()))
    assert made.rows == again.rows and len(made.rows) >= 8
    return made


def score_by_hand(arena, prompt, text):
    """The reward model's score of one story, without padding."""
    ids = encode_prompt(arena.tokenizer, prompt) + encode_answer(arena.tokenizer, text)
    return arena.reward_model(torch.tensor([ids]))[0, -1].item()


def test_the_scores_of_the_reward_model(arena):
    """Of sampled answers, and of the stories of pairs: the same as one story at a time; held-out scores are normal."""
    requests = story_requests(5, 0, "test")
    answers = sample_answers(arena.policy, arena.tokenizer, [prompt for prompt, _ in requests], max_new_tokens=24)
    for answer, score in zip(answers, arena.learned(answers)):
        ids = torch.tensor([answer.prompt_ids + answer.response_ids])
        assert score == pytest.approx(arena.reward_model(ids)[0, -1].item(), abs=1e-4)
    pairs = [{"prompt": row["prompt"], "answers": [row["chosen"], row["rejected"]]} for row in arena.rows[:4]]
    table = arena.score_table(pairs)
    for pair in pairs:
        for text in pair["answers"]:
            expected = score_by_hand(arena, pair["prompt"], text)
            assert table(pair["prompt"], text) == pytest.approx(expected, abs=1e-4)
    chosen, rejected, _ = stories.score_rows(arena.reward_model, arena.tokenizer, arena.valid_rows)
    both = torch.cat([chosen, rejected])
    assert abs(both.mean()) < 1e-3 and both.std(unbiased=False).item() == pytest.approx(1, abs=1e-3)


def test_a_policy_that_has_not_moved(arena):
    """Judged against itself: KL 0, and the same stories for the same seed."""
    requests = story_requests(6, 0, "test")
    found = arena.judge(arena.policy, requests, 3)
    assert abs(found["kl"]) < 1e-4 and found == arena.judge(arena.copy_policy(), requests, 3)
    assert found["gold"] == pytest.approx(sum(found["scores"]) / 6) and 1 <= found["length"] <= 24


def test_the_gold_reward_in_units_of_its_spread(arena):
    """Over the arena's own stories it has mean 0 and standard deviation 1."""
    gold = [score for row in arena.rows for score in row["gold"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(align, "gold_reward", lambda tokenizer, scenes: lambda generation: torch.tensor(gold))
        scores = align.scaled_gold(arena, {})(None)
    assert abs(scores.mean()) < 1e-5 and scores.std().item() == pytest.approx(1, abs=1e-5)


def test_the_best_of_n(arena):
    """Among the first n stories of each request the one that the reward model likes best: it rises with n."""
    requests = story_requests(3, 0, "test")
    found = align.pick_best(arena, requests, 8)
    assert list(found) == [2, 4, 8] and all(len(gold) == len(learned) == 3 for gold, learned in found.values())
    for few, many in ((2, 4), (4, 8)):
        assert all(a <= b for a, b in zip(found[few][1], found[many][1]))
    for point in align.best_of_n(arena, requests, 8):
        gold, learned = found[point["n"]]
        assert (point["scores"], point["gold"], point["learned"]) == (gold, sum(gold) / 3, sum(learned) / 3)


@pytest.mark.parametrize("method", [*align.ONLINE, *align.OFFLINE])
def test_every_method_trains_a_copy(method, arena):
    """Judged four times on the way; the policy moves, and the arena's own models do not."""
    train, seen = align.ONLINE.get(method) or align.OFFLINE[method], []
    before = [copy.deepcopy(model.state_dict()) for model in (arena.policy, arena.reward_model)]

    def judge(policy):
        seen.append(copy.deepcopy(policy.state_dict()))
        return {"kl": len(seen)}
    assert train(arena, 0.1, SETTINGS, judge) == [{"kl": number} for number in (1, 2, 3, 4)]
    assert any(not torch.equal(a, b) for a, b in zip(seen[-1].values(), before[0].values()))
    for model, old in zip((arena.policy, arena.reward_model), before):
        assert all(torch.equal(value, old[name]) for name, value in model.state_dict().items())


def test_what_is_learned(arena, monkeypatch):
    """SFT sees the chosen stories only; KTO the chosen as wanted and the rejected as not; DPO each pair as it is."""
    seen = {}
    monkeypatch.setattr(align, "tune_on_chats", lambda policy, tokenizer, rows, **rest: seen.update(chats=rows))
    align.on_chosen(arena, 0.0, SETTINGS, None)
    assert [row["messages"][1]["content"] for row in seen["chats"]] == [row["chosen"] for row in arena.rows]
    monkeypatch.setattr(align, "train", lambda policy, batches, *rest, **more: seen.update(examples=batches.examples))
    align.on_single_answers(arena, 0.1, SETTINGS, None)
    texts = []
    for example in seen["examples"]:
        start = example["answer_response_mask"].index(True)
        text = arena.tokenizer.decode(example["answer_input_ids"][start:], skip_special=True)
        texts.append((text, example["wanted"]))
    expected = []
    for row in arena.rows:
        expected += [(row["chosen"], True), (row["rejected"], False)]
    assert texts == expected
    align.on_pairs(arena, 0.1, SETTINGS, None, lambda policy, beta: None)
    assert len(seen["examples"]) == len(arena.rows) and "ref_chosen_logprobs" in seen["examples"][0]
