"""What a resumed search takes from the store is what it had: optimizers are shown the very same problem texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trace_opt import Budget, Feedback, OptoPrime, Parameter, optimize, trace
from trace_opt.search.rolling import Roller
from trace_opt.store.store import open_store
from trace_opt.testing import ScriptedLLM

TRAIN = [{"wanted": 2.0 + i / 8} for i in range(8)]


@trace
def turn(x: float) -> float:
    return x


def test_problem_texts_are_the_same_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The incumbent's first graph comes from the store, where the node that feedback is about has to have its place."""

    def asked(store: str, resume: str | None = None) -> list[str]:
        x = Parameter(1.0, name="x")
        texts: list[str] = []

        def reply(messages: Any) -> str:
            texts.append(messages[-1]["content"])
            now = float(texts[-1].split("now: ")[1].split()[0])
            return f'{{"values": {{"x": {2.5 if now == 1 else now + len(texts[-1])}}}}}'

        optimize(
            lambda wanted: turn(x.value), TRAIN, lambda out, e: Feedback(-abs(out - e["wanted"])), parameters=[x],
            val=TRAIN, optimizers=[OptoPrime(ScriptedLLM(reply))], budget=Budget(trials=6), store=tmp_path / store,
            resume=resume,
        )  # fmt: skip
        return texts

    whole = asked("whole.db")
    run, seen = Roller.run, [0]

    def stop(self: Roller, job: Any) -> Any:
        seen[0] += job.candidate == 3
        if seen[0] == 3:
            raise KeyboardInterrupt
        return run(self, job)

    monkeypatch.setattr(Roller, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        asked("cut.db")
    monkeypatch.undo()
    store = open_store(tmp_path / "cut.db")
    cut = store.load("last").info.id
    store.close()
    resumed = asked("cut.db", cut)
    assert 0 < len(resumed) < len(whole)
    assert resumed == whole[-len(resumed) :]
