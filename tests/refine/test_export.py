"""SmolLM2 under transformers and under llama.cpp: the same prompts, the same words, with and without an adapter."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.refine.test_policy import moved
from trace_opt import Adapter, TrainablePolicy, connect
from trace_opt.errors import LLMError
from trace_opt.llm.connect import _with_adapter
from trace_opt.llm.models import pull
from trace_opt.refine import export
from trace_opt.refine.export import export_adapter

ASKED = [
    {"role": "system", "content": "You advise an agent."},
    {"role": "user", "content": "An agent failed to open a locked door. In one sentence, what should it do next?"},
]
FIRST = ("Look", "Take", "Open", "Instead", "The", "First")


@pytest.fixture(scope="module")
def policy() -> Iterator[TrainablePolicy]:
    try:
        pull("smollm2")
    except LLMError as error:
        pytest.skip(f"the model cannot be had here: {error}")
    made = TrainablePolicy(name="reflector", device="cpu")
    moved(made, size=0.03)
    yield made


def scores(model: Any) -> list[float]:
    return list(model.reply(ASKED, answers=FIRST).logprobs)


def farthest(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


def test_both_read_the_same_tokens_and_know_the_capital(policy: TrainablePolicy) -> None:
    """The chat template and tokenizer agree with llama.cpp's, and the converted weights answer as they should."""
    embedded = connect("embedded/smollm2", cache=None)
    asked = [{"role": "system", "content": ""}, {"role": "user", "content": "What is the capital of France?\n\n é"}]
    ours = policy.reply(asked, max_tokens=12)
    assert ours.cost.tokens_in == embedded.reply(asked, max_tokens=1).cost.tokens_in
    france = policy.reply("What is the capital of France?", max_tokens=12)
    assert (france.text, france.finish) == ("The capital of France is Paris.", "stop")


def test_llama_cpp_says_with_the_exported_adapter_what_the_policy_says(
    policy: TrainablePolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Greedy text is the same and log probabilities are close; without the heads' permutation they are far off."""
    learned = policy.dump()
    path = export_adapter(policy, tmp_path / "reflector.gguf", learned)
    assert os.listdir(tmp_path) == ["reflector.gguf"]
    served = connect(f"embedded/smollm2+{path}", cache=None)
    base = policy.reply(ASKED, max_tokens=24).text
    policy.adapter.value = learned
    try:
        said = policy.reply(ASKED, max_tokens=24).text
        assert served.reply(ASKED, max_tokens=24).text == said != base
        # the base's quantized kernels alone account for 0.2
        ours = scores(policy)
        assert farthest(scores(served), ours) < 0.3
    finally:
        policy.adapter.value = Adapter()
    monkeypatch.setattr(export, "_interleaved", lambda weight, _: weight)
    wrong = connect(f"embedded/smollm2+{export_adapter(policy, tmp_path / 'wrong.gguf', learned)}", cache=None)
    assert farthest(scores(wrong), ours) > 2 * farthest(scores(served), ours)


def test_what_is_exported_by_default_is_the_value_of_the_adapter(policy: TrainablePolicy, tmp_path: Path) -> None:
    """Whatever weights stand in the model, as those of a control that was run last."""
    learned = policy.dump()
    policy.adapter.value = learned
    try:
        with policy.lock:
            policy.load(Adapter())
        export_adapter(policy, tmp_path / "default.gguf")
    finally:
        policy.adapter.value = Adapter()
        policy.load(learned)
    export_adapter(policy, tmp_path / "named.gguf", learned)
    assert (tmp_path / "default.gguf").read_bytes() == (tmp_path / "named.gguf").read_bytes()


def test_a_missing_adapter_file_says_how_to_write_one(tmp_path: Path) -> None:
    """A name with a plus and no such file raises when the model is first asked."""
    model = connect(f"embedded/smollm2+{tmp_path / 'none.gguf'}", cache=None)
    with pytest.raises(LLMError, match=r"there is no file .*none.gguf'; write it with export_adapter"):
        model("x")


@pytest.mark.parametrize(
    ("name", "base", "adapter"),
    [
        ("smollm2", "smollm2", None),
        ("smollm2+a.gguf", "smollm2", "a.gguf"),
        ("smollm2+/x+y/a.gguf", "smollm2", "/x+y/a.gguf"),
        ("/m+n/base.gguf", "/m+n/base.gguf", None),
        ("/m+n/base.gguf+a.gguf", "/m+n/base.gguf", "a.gguf"),
    ],
)
def test_an_adapter_follows_its_base_after_a_plus(name: str, base: str, adapter: str | None) -> None:
    """Only a plus behind a known model or a .gguf parts them; paths may hold one."""
    found = _with_adapter(name)
    assert found == (base, None if adapter is None else Path(adapter).absolute())


def test_replies_under_another_adapter_are_kept_apart(tmp_path: Path) -> None:
    """The adapter's content is part of what a cached reply is known by."""
    path = tmp_path / "a.gguf"
    path.write_bytes(b"one")
    names = {connect("embedded/smollm2").identity, connect(f"embedded/smollm2+{path}").identity}
    path.write_bytes(b"another")
    assert len({*names, connect(f"embedded/smollm2+{path}").identity}) == 3
