"""The reward model: it tells good completions from bad ones, trains what it should and nothing else, and is kept whole."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.refine.tiny_llama import tiny_policy
from tests.refine.tiny_writer import LETTERS, TinyWriter
from trace_opt.core.adapter import Adapter
from trace_opt.refine.earning import earned
from trace_opt.refine.guards import PolicyGuards, Watch
from trace_opt.refine.outcomes import Rated
from trace_opt.refine.reward_model import RewardModel, RewardTraining, auc
from trace_opt.refine.supervised import Pair


def rated(n: int, seed: int) -> list[Pair]:
    """Random words; those that hold an `a` or a `b` were worth something."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=4)) for _ in range(n)]
    return [Pair(rng.choice("qxz"), word, 0.5 if {"a", "b"} & set(word) else -0.25) for word in words]


TRAIN, HELD_OUT = rated(120, 1), rated(60, 2)
GOOD = [pair.gain > 0 for pair in HELD_OUT]


def scores(model: RewardModel, pairs: list[Pair] = HELD_OUT) -> list[float]:
    return model.score([pair.prompt for pair in pairs], [pair.completion for pair in pairs])


@pytest.mark.parametrize("threshold", [0.0, None])
def test_it_learns_a_rule_and_tells_it_on_other_completions(threshold: float | None) -> None:
    """Held-out area under the curve above .95 as a classifier and as a regression, from .5 before."""
    model = RewardModel(TinyWriter(), threshold=threshold)
    RewardTraining(model, TRAIN)
    assert auc(scores(model), GOOD) == 0.5
    losses = model.fit(TRAIN, epochs=30)
    assert losses[-1] < 0.5 * losses[0]
    found = scores(model)
    assert auc(found, GOOD) > 0.95
    if threshold is None:
        assert sum(abs(a - pair.gain) for a, pair in zip(found, HELD_OUT, strict=True)) / len(found) < 0.25
    else:
        assert all(0 <= score <= 1 for score in found)


def test_only_the_head_is_trained() -> None:
    """The backbone's weights stay to the bit, and training them afterwards changes no score."""
    policy = TinyWriter()
    before = policy.dump()
    model = RewardModel(policy)
    model.fit(TRAIN, epochs=2)
    assert policy.dump() == before
    found = scores(model)
    with torch.no_grad():
        policy.last.add_(1.0)
    assert scores(model) == found


def test_the_adapter_is_trained_where_that_is_asked_for() -> None:
    """What reads is moved, what only writes is not, and the loss ends below that of the head alone."""
    policy = TinyWriter()
    before = policy.dump().tensors()
    model = RewardModel(policy, tune=True)
    losses = model.fit(TRAIN, epochs=6, lr=3e-3)
    after = policy.dump().tensors()
    assert not torch.equal(after["last"], before["last"])
    alone = RewardModel(TinyWriter())
    assert losses[-1] < alone.fit(TRAIN, epochs=6, lr=3e-3)[-1]
    assert auc(scores(model), GOOD) > 0.9


@pytest.mark.parametrize("tune", [False, True])
def test_it_comes_back_from_its_file(tune: bool, tmp_path: Path) -> None:
    """Scores are equal to the bit, in a backbone made anew, which gets the trained adapter."""
    model = RewardModel(TinyWriter(), tune=tune, threshold=0.25)
    model.fit(TRAIN, epochs=3)
    model.save(tmp_path / "reward.safetensors")
    again = RewardModel.load(tmp_path / "reward.safetensors", TinyWriter())
    assert (again.tune, again.threshold) == (tune, 0.25)
    assert scores(again) == scores(model)
    assert [path.name for path in tmp_path.iterdir()] == ["reward.safetensors"]


@pytest.mark.parametrize("tune", [False, True])
def test_stopped_training_goes_on_bit_for_bit(tune: bool, tmp_path: Path) -> None:
    """Losses and what is learned equal those of training that was never stopped."""
    whole = RewardModel(TinyWriter(), tune=tune)
    losses = whole.fit(TRAIN, epochs=4)
    first = RewardTraining(RewardModel(TinyWriter(), tune=tune), TRAIN, epochs=4)
    for _ in range(13):
        first.step()
    model = RewardModel(TinyWriter(), tune=tune)
    second = RewardTraining(model, TRAIN, epochs=4)
    second.load_state_dict(first.state_dict())
    assert second.run() == losses
    assert model.dump() == whole.dump()
    file = tmp_path / "state.json"
    kept = RewardModel(TinyWriter(), tune=tune)
    assert kept.fit(TRAIN, epochs=4, checkpoint=file) == losses
    taken_up = RewardModel(TinyWriter(), tune=tune)
    assert taken_up.fit(TRAIN, epochs=4, checkpoint=file) == losses
    assert taken_up.dump() == whole.dump()


def test_it_stands_on_a_language_model(tmp_path: Path) -> None:
    """The base of a Llama of random weights tells good last words from bad ones, also once its adapter was trained."""
    rng = random.Random(3)
    words = ["left", "right", "up", "hm", "so"]

    def some(n: int) -> list[Pair]:
        said = [" ".join(rng.choices(words, k=3)) for _ in range(n)]
        return [Pair(f"place {rng.randint(0, 2)}", text, float(text.split()[-1] in ("left", "up"))) for text in said]

    train, held_out = some(60), some(24)
    policy = tiny_policy()
    model = RewardModel(policy)
    model.fit(train, epochs=20)
    found = scores(model, held_out)
    assert auc(found, [pair.gain > 0 for pair in held_out]) > 0.9
    alone = [model.score([pair.prompt], [pair.completion])[0] for pair in held_out]
    assert alone == pytest.approx(found, abs=1e-5)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(0.1)
    assert scores(model, held_out) == found
    model.save(tmp_path / "reward.safetensors")
    assert scores(RewardModel.load(tmp_path / "reward.safetensors", tiny_policy()), held_out) == found
    tuned = RewardModel(tiny_policy(), tune=True)
    start = tuned.backbone.dump()
    tuned.fit(train[:16], epochs=1, lr=1e-2)
    assert tuned.backbone.dump() != start


def test_an_adapter_that_was_trained_with_it_carries_its_alpha(tmp_path: Path) -> None:
    """A backbone of another alpha would read something else with it."""
    model = RewardModel(tiny_policy(), tune=True)
    model.fit([Pair("go", "left", 1.0), Pair("go", "right", -1.0)], epochs=2, lr=0.1)
    file = tmp_path / "reward.safetensors"
    model.save(file)
    again = RewardModel.load(file, tiny_policy())
    assert again.dump() == model.dump()
    with pytest.raises(ValueError, match=r"trained at alpha 8\.0, and this policy has alpha 16\.0"):
        RewardModel.load(file, tiny_policy(alpha=16.0))


def test_completions_of_a_policy_are_rated_as_texts_are() -> None:
    """A rollout's completions, several of one prompt, score as their texts do one by one."""
    policy = TinyWriter()
    model = RewardModel(policy)
    model.fit(TRAIN, epochs=2)
    said = policy.written([("q", "ab"), ("z", "cd")])
    assert model(said) == pytest.approx([*model.score(["q"], ["ab"]), *model.score(["z"], ["cd"])], rel=1e-6)
    assert model.score([], []) == []


def test_it_takes_the_place_of_the_environment() -> None:
    """As a refiner's reward it is what completions earn, whatever their attempts gained."""
    policy = TinyWriter()
    model = RewardModel(policy)
    model.fit(TRAIN, epochs=2)
    said = policy.written([("q", "ab"), ("q", "cd")])
    found = earned([Rated(completions=said, gains=(0.0, 0.0))], Watch(), PolicyGuards(), reward=model)
    assert found[0].raw == tuple(model(said))
    assert not found[0].is_silent


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2))
def test_the_area_under_the_curve_turns_with_the_scores(pairs: list[tuple[int, bool]]) -> None:
    """Opposite scores give the opposite area, and any rising map of the scores gives the same."""
    values, good = [float(score) for score, _ in pairs], [is_good for _, is_good in pairs]
    if len(set(good)) < 2:
        with pytest.raises(ValueError, match="give at least one of each"):
            auc(values, good)
        return
    area = auc(values, good)
    assert auc([-value for value in values], good) == pytest.approx(1 - area)
    assert auc([value**3 + 2 for value in values], good) == area


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    """Each refusal names what is wrong and says what to do."""
    policy = TinyWriter()
    model = RewardModel(policy)
    with pytest.raises(ValueError, match=r"was not trained yet; call fit\(pairs\), or load"):
        model.score(["q"], ["ab"])
    with pytest.raises(ValueError, match=r"was not trained yet; call fit\(pairs\) before save"):
        model.save(tmp_path / "reward.safetensors")
    with pytest.raises(ValueError, match="no pairs for the reward model to learn from; give at least one"):
        model.fit([])
    with pytest.raises(ValueError, match=r"all of the 1 pairs gained more than 0\.0, .*another threshold"):
        model.fit([Pair("q", "ab", 1.0)])
    with pytest.raises(ValueError, match=r"none of the 1 pairs gained more than 2\.0"):
        RewardModel(policy, threshold=2.0).fit([Pair("q", "ab", 1.0)])
    with pytest.raises(ValueError, match="there are 2 prompts and 1 completions; give a prompt for each"):
        model.score(["q", "z"], ["ab"])
    tuples: Any = [("q", "ab", 1.0), ("z", "c", -1.0)]
    with pytest.raises(ValueError, match=r"the reward model got \('q', 'ab', 1\.0\) for a pair; give Pair\("):
        model.fit(tuples)
    with pytest.raises(ValueError, match="the reward model got every=0; give a whole number of steps"):
        model.fit(TRAIN, checkpoint=tmp_path / "state.json", every=0)
    with pytest.raises(ValueError, match=r"RewardModel\.score got the single prompt 'qz'; give a list of prompts"):
        model.score("qz", ["ab", "c"])
    with pytest.raises(ValueError, match=r"RewardModel\.score got the single completion 'ab'; give a list"):
        model.score(["q", "z"], "ab")
    state = RewardTraining(model, TRAIN).state_dict()
    with pytest.raises(ValueError, match="other pairs, other options or another start; give the same"):
        RewardTraining(RewardModel(policy, threshold=0.1), TRAIN).load_state_dict(state)


def test_a_file_that_is_no_reward_model_is_refused(tmp_path: Path) -> None:
    """Text, an adapter, and a reward model of another width."""
    from safetensors.torch import save_file

    file = tmp_path / "file.safetensors"
    with pytest.raises(ValueError, match="is no safetensors file .*; give what save wrote"):
        RewardModel.load(file, TinyWriter())
    file.write_text("no")
    with pytest.raises(ValueError, match="is no safetensors file .*; give what save wrote"):
        RewardModel.load(file, TinyWriter())
    file.write_bytes(TinyWriter().dump().data)
    with pytest.raises(ValueError, match="holds no reward model; give what save wrote"):
        RewardModel.load(file, TinyWriter())
    model = RewardModel(TinyWriter())
    model.fit(TRAIN, epochs=1)
    model.save(file)
    with pytest.raises(ValueError, match="reads features of width 56, and the backbone's have 28; give the base model"):
        RewardModel.load(file, Narrow())
    assert isinstance(model.dump(), Adapter)
    assert len(LETTERS) == 28
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="holds no reward model"):
        RewardModel.load(file, TinyWriter())


class Narrow(TinyWriter):
    """Looks at no prompt."""

    def features(self, completions: object, *, base: bool = True) -> torch.Tensor:
        return super().features(completions, base=base)[:, : len(LETTERS)]  # type: ignore[arg-type]
