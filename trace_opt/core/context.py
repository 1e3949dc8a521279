"""What is in force while a workflow runs: the recording it belongs to, and the candidate's values and seed.

One ContextVar holds one `Frame`. asyncio tasks and threads see copies of it, so concurrent rollouts never mix and
no global registry exists; dropping the frame frees everything it held.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_opt.core.reuse import Memo
    from trace_opt.core.strand import Frame

FRAME: ContextVar[Frame | None] = ContextVar("trace_opt_frame", default=None)


class Process:
    """What this process has seen so far.

    Attributes:
        unwraps: Whether an op called outside a recording may be handed a result or a Parameter: until the first of
            them exists, it need not look at its arguments.
        outside: Shown every Parameter that is read where neither a recording nor a candidate's values are in force.
    """

    unwraps = False
    outside: tuple[Callable[[Any], None], ...] = ()


class RolloutState:
    """The values, seed and random stream of the rollout that is running.

    Attributes:
        values: The candidate's values by full parameter name; parameters not named keep their own value.
        seed: The rollout's seed, or None outside a seeded rollout.
        training: Whether it trains tensors: then those of `values` that require grad are handed out as they are. False
            hands out none that does; None, by hand, makes each tensor parameter a leaf of the recording's own.
        memo: What op calls gave in an earlier rollout on the same example, or None.
        repeat: Which time the example is run with this seed; decides torch's own chance in a training rollout.
        calls: How often each sampled model call was made, so that the n-th identical one draws an answer of its own.
    """

    __slots__ = ("_rng", "calls", "memo", "repeat", "seed", "training", "values")

    def __init__(
        self, values: Mapping[str, Any] | None = None, seed: int | None = None, *, training: bool | None = None,
        memo: Memo | None = None, repeat: int = 0,
    ) -> None:  # fmt: skip
        self.values: dict[str, Any] = dict(values or {})
        self.seed = seed
        self.training = training
        self.memo = memo
        self.repeat = repeat
        self.calls: dict[str, int] = {}
        self._rng: random.Random | None = None

    def noticed(self) -> RolloutState:
        """This state; a memoized op's body takes note of who asks for it."""
        return self

    @property
    def drew(self) -> bool:
        """Whether anybody asked for `rng`."""
        return self._rng is not None

    @property
    def rng(self) -> random.Random:
        """A `random.Random` seeded with the rollout's seed (unseeded outside a seeded rollout)."""
        if self._rng is None:
            self._rng = random.Random(self.seed)  # noqa: S311 # a reproducible stream, not a secret
        return self._rng


STATE: ContextVar[RolloutState | None] = ContextVar("trace_opt_rollout", default=None)


def rollout() -> RolloutState:
    """The rollout that is running: `.seed`, `.rng` and `.values`, for user code that needs chance.

    Outside a rollout its seed is None and its stream is unseeded, so that a workflow runs the same unrecorded.
    """
    state = STATE.get()
    return RolloutState() if state is None else state.noticed()


class in_force:  # noqa: N801 # reads as it is used: `with in_force(values)`
    """Run code unrecorded with a candidate's values in force, as a guide or a proposing optimizer does.

    Args:
        values: Values by full parameter name.
        seed: The seed that `rollout()` reports.
        training, repeat: As in `RolloutState`.

    Entering gives the `RolloutState`.
    """

    __slots__ = ("_state", "_tokens")

    def __init__(
        self, values: Mapping[str, Any] | None = None, seed: int | None = None, *, training: bool | None = None,
        repeat: int = 0,
    ) -> None:  # fmt: skip
        self._state = RolloutState(values, seed, training=training, repeat=repeat)

    def __enter__(self) -> RolloutState:
        self._tokens = STATE.set(self._state), FRAME.set(None)
        return self._state

    def __exit__(self, *_: object) -> None:
        state_token, frame_token = self._tokens
        FRAME.reset(frame_token)
        STATE.reset(state_token)
