"""The supervised stage: what it learns, from which pairs, and that it goes on bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.refine.tiny_llama import tiny_policy
from tests.refine.tiny_writer import TinyWriter
from trace_opt.core.adapter import Adapter
from trace_opt.refine import checkpoint as files
from trace_opt.refine.buffer import Experience
from trace_opt.refine.warm_start import Pair, WarmStart, fine_tune, mean_loss, supervised

PAIRS = [Pair("q", "go"), Pair("z", "up"), Pair("x", "in"), Pair("qz", "no"), Pair("v", "at")]
OPTIONS: dict[str, Any] = {"lr": 0.2, "epochs": 10, "batch": 2}


def weights(policy: TinyWriter) -> list[list[float]]:
    return [w.detach().flatten().tolist() for w in policy.parameters()]


def test_it_learns_to_say_what_the_pairs_said() -> None:
    """The loss falls to nearly nothing, and the greedy completion of each prompt is its pair's."""
    policy = TinyWriter()
    before = mean_loss(policy, PAIRS)
    losses = fine_tune(policy, PAIRS, **OPTIONS)
    assert len(losses) == 30
    assert before > 3.0
    assert mean_loss(policy, PAIRS) < 0.1
    assert [policy.says(pair.prompt) for pair in PAIRS] == [pair.completion for pair in PAIRS]
    assert policy.adapter.value == policy.dump()


def test_it_starts_from_the_value_of_the_adapter() -> None:
    """A second stage goes on from the first one's result, whatever weights are loaded meanwhile."""
    policy = TinyWriter()
    fine_tune(policy, PAIRS, **OPTIONS)
    learned = mean_loss(policy, PAIRS)
    policy.load(Adapter())
    assert WarmStart(policy, PAIRS, batch=8).step() == pytest.approx(learned, rel=1e-6)


def test_only_pairs_that_gained_more_than_the_threshold_are_learned() -> None:
    """A completion that did harm or nothing is left out; without a threshold all count."""
    rated = [Pair("q", "go", 0.5), Pair("z", "up", 0.0), Pair("x", "in", -1.0)]
    assert WarmStart(TinyWriter(), rated).pairs == (rated[0],)
    assert WarmStart(TinyWriter(), rated, above=None).pairs == tuple(rated)
    assert WarmStart(TinyWriter(), rated, above=-0.5).pairs == tuple(rated[:2])


def test_reflections_from_the_store_are_pairs() -> None:
    """What the replay buffer holds is learned from as it is: prompt, completion and gain."""
    kept = [
        Experience(prompt=pair.prompt, completion=pair.completion, gain=gain, rated="paired", candidate=0, example=0,
                   repeat=0, split="train", attempt=1)
        for pair, gain in zip(PAIRS, (0.5, 0.0, -0.5, 1.0, 0.25), strict=True)
    ]  # fmt: skip
    training = WarmStart(TinyWriter(), kept)
    assert training.pairs == (Pair("q", "go", 0.5), Pair("qz", "no", 1.0), Pair("v", "at", 0.25))


def test_the_first_loss_is_that_of_the_completions_tokens_alone() -> None:
    """It equals the mean over completions' tokens, the ending one included, weighed by tokens and not by pairs."""
    policy = TinyWriter()
    pairs = [Pair("q", "a"), Pair("z", "bcdefg")]
    batch = supervised(policy, pairs)
    assert batch.mask.sum(1).tolist() == [2, 7]
    said = policy.log_prob(batch).detach()
    expected = -(said[0, :2].sum() + said[1].sum()) / 9
    assert WarmStart(policy, pairs).step() == pytest.approx(float(expected), rel=1e-6)


def test_each_epoch_takes_every_pair_once_in_another_order() -> None:
    """Orders come from the seed alone, and differ between epochs."""
    training = WarmStart(TinyWriter(), PAIRS, epochs=3, batch=2, seed=4)
    epochs = [[i for step in range(3) for i in training.chosen(3 * epoch + step)] for epoch in range(3)]
    for taken in epochs:
        assert sorted(taken) == list(range(len(PAIRS)))
    assert epochs[0] != epochs[1]
    again = WarmStart(TinyWriter(), PAIRS, epochs=3, batch=2, seed=4)
    assert [again.chosen(step) for step in range(9)] == [training.chosen(step) for step in range(9)]


@pytest.mark.parametrize("stop", [1, 5])
def test_a_stopped_warm_start_goes_on_bit_for_bit(stop: int) -> None:
    """Losses and weights equal those of one that was never stopped, in a policy made anew."""
    whole = TinyWriter()
    losses = fine_tune(whole, PAIRS, **OPTIONS)
    first = WarmStart(TinyWriter(), PAIRS, **OPTIONS)
    for _ in range(stop):
        first.step()
    policy = TinyWriter()
    second = WarmStart(policy, PAIRS, **OPTIONS)
    second.load_state_dict(first.state_dict())
    while not second.done:
        second.step()
    assert second.losses == losses
    assert weights(policy) == weights(whole)


def test_a_killed_warm_start_goes_on_from_its_file(tmp_path: Path) -> None:
    """What the file holds is taken up and not done again; a finished one does nothing more."""
    file = tmp_path / "warm" / "state.json"
    whole = TinyWriter()
    losses = fine_tune(whole, PAIRS, **OPTIONS)
    policy = Stopping(after=12)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(policy, PAIRS, checkpoint=file, every=5, **OPTIONS)
    policy = Stopping(after=20)
    assert fine_tune(policy, PAIRS, checkpoint=file, every=5, **OPTIONS) == losses
    assert weights(policy) == weights(whole)
    policy = Stopping(after=0)
    assert fine_tune(policy, PAIRS, checkpoint=file, **OPTIONS) == losses
    assert weights(policy) == weights(whole)


class Stopping(TinyWriter):
    """Is killed after so many steps."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def log_prob(self, batch: Any) -> torch.Tensor:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return super().log_prob(batch)


def test_a_language_model_learns_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """The loss of the completions' tokens falls; halfway from a file the weights are the same to the bit.

    Nothing is computed of a reference.
    """
    pairs = [Pair("place 0 so", "go left"), Pair("place 1 so", "go right"), Pair("place 2", "up up")]
    options: dict[str, Any] = {"lr": 0.02, "epochs": 4, "batch": 2}
    policy = tiny_policy()
    made = supervised(policy, pairs)
    assert made.log_probs is None
    assert made.reference is None
    assert made.mask.sum(1).tolist() == [3, 3, 3]
    before = mean_loss(policy, pairs)
    losses = fine_tune(policy, pairs, **options)
    assert mean_loss(policy, pairs) < before - 0.05  # its frozen head is too weak for much more
    half = WarmStart(tiny_policy(), pairs, **options)
    for _ in range(3):
        half.step()
    files.save(tmp_path / "state.json", half.state_dict())
    again = tiny_policy()
    assert fine_tune(again, pairs, checkpoint=tmp_path / "state.json", **options) == losses
    assert again.dump() == policy.dump()


def test_what_cannot_work_is_refused() -> None:
    """Each refusal names what is wrong and says what to do."""
    policy = TinyWriter()
    with pytest.raises(ValueError, match="no pairs for the warm start to learn from; give at least one"):
        WarmStart(policy, [])
    with pytest.raises(ValueError, match=r"none of the 1 pairs gained more than 0\.5, the best 0\.25; give better"):
        WarmStart(policy, [Pair("q", "go", 0.25)], above=0.5)
    with pytest.raises(ValueError, match="empty completion of 'q'; leave it out"):
        WarmStart(policy, [Pair("q", "")])
    with pytest.raises(ValueError, match="epochs is 0; give at least 1"):
        WarmStart(policy, PAIRS, epochs=0)
    with pytest.raises(ValueError, match="batch is 0; give at least 1"):
        WarmStart(policy, PAIRS, batch=0)
    with pytest.raises(ValueError, match="clip is 0; give a length above 0, or None"):
        WarmStart(policy, PAIRS, clip=0)
    done = WarmStart(policy, PAIRS[:1], epochs=1)
    done.step()
    with pytest.raises(ValueError, match="all 1 steps of the warm start were made; make another"):
        done.step()
    with pytest.raises(ValueError, match="other pairs, other options or another start; give the same"):
        WarmStart(policy, PAIRS).load_state_dict(done.state_dict())
    for weight in policy.parameters():
        weight.requires_grad_(False)
    with pytest.raises(ValueError, match="a policy without weights that require grad; give it some to train"):
        WarmStart(policy, PAIRS)


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_steps_between_checkpoints_are_checked_before_anything_is_paid(every: Any, tmp_path: Path) -> None:
    """Not after the first step, which would be lost."""
    policy = Stopping(after=0)
    with pytest.raises(ValueError, match=r"the warm start got every=.*; give a whole number of steps of at least 1"):
        fine_tune(policy, PAIRS, checkpoint=tmp_path / "state.json", every=every)


def test_what_is_no_pair_is_refused() -> None:
    """A tuple that looks like one, in either entry."""
    given: Any = [PAIRS[0], ("q", "go", 1.0)]
    for learn in (fine_tune, WarmStart):
        with pytest.raises(ValueError, match=r"the warm start got \('q', 'go', 1\.0\) for a pair; give Pair\(prompt"):
            learn(TinyWriter(), given)


def test_a_checkpoint_from_another_start_is_refused(tmp_path: Path) -> None:
    """It would put what was learned from there in the place of the adapter given."""
    file = tmp_path / "state.json"
    fine_tune(TinyWriter(), PAIRS, checkpoint=file, **OPTIONS)
    policy = TinyWriter()
    fine_tune(policy, PAIRS[:2], **OPTIONS)
    with pytest.raises(ValueError, match="or another start; give the same"):
        fine_tune(policy, PAIRS, checkpoint=file, **OPTIONS)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    """Nothing of it is used, and the remedy is named."""
    for text in ("{", "[1]", '{"$": "tensor"}'):
        file = tmp_path / "state.json"
        file.write_text(text)
        with pytest.raises(ValueError, match=r"is no checkpoint.*; remove it, or give another path"):
            fine_tune(TinyWriter(), PAIRS, checkpoint=file)
