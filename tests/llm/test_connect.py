"""Models by name, their prices, and which one is chosen."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trace_opt.errors import LLMError
from trace_opt.llm.base import LLM, Request, normalised, tokens_in_at_most
from trace_opt.llm.choose import choose_model
from trace_opt.llm.connect import connect
from trace_opt.llm.prices import Price, price_of


def test_connecting_loads_no_client_and_no_model() -> None:
    script = (
        "import sys; from trace_opt.llm.connect import connect;"
        "connect('openai/gpt-4.1-mini'); connect('anthropic/claude-sonnet-4-5'); connect('embedded/smollm2');"
        "print([m for m in ('openai', 'litellm', 'xllamacpp', 'torch', 'pydantic', 'networkx', 'sqlalchemy') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_name_without_a_provider_is_completed() -> None:
    with pytest.raises(LLMError, match=r"write 'openai/gpt-4\.1-mini'"):
        connect("gpt-4.1-mini")


def test_an_unknown_embedded_model_is_named() -> None:
    with pytest.raises(LLMError, match="no embedded model is named 'smolm2'"):
        connect("embedded/smolm2")


def test_a_mistyped_default_is_named_before_any_call() -> None:
    with pytest.raises(LLMError, match="did you mean 'temperature'"):
        connect("openai/gpt-4.1-mini", temprature=1.0)  # pyright: ignore[reportArgumentType]


def test_a_servers_own_name_of_a_model_may_hold_a_slash() -> None:
    assert connect("meta-llama/Llama-3-8B", base_url="http://localhost:1/v1").name == "openai/meta-llama/Llama-3-8B"


def test_a_model_never_shows_its_key() -> None:
    llm = connect("openai/gpt-4.1-mini", api_key="sk-very-secret-indeed")

    assert "secret" not in repr(llm)


def test_a_copy_of_a_model_is_the_model() -> None:
    llm = connect("openai/gpt-4.1-mini")

    assert copy.deepcopy(llm) is llm


def worst_usd(llm: LLM) -> float | None:
    return llm.price(llm.request("hi", max_tokens=1000)).usd


def test_a_listed_price_is_used() -> None:
    worst = worst_usd(connect("openai/gpt-4.1-mini"))

    assert worst is not None
    assert worst > 1000 * 1.6e-6


def test_an_unknown_price_is_none_and_never_zero() -> None:
    assert worst_usd(connect("openai/gpt-99")) is None
    assert worst_usd(connect("nosuch/model")) is None
    assert worst_usd(connect("openai/gpt-4.1-mini", base_url="http://localhost:1/v1")) is None


def test_models_of_this_machine_cost_nothing() -> None:
    for llm in (
        connect("embedded/smollm2"),
        connect("ollama/llama3"),
        connect("openai/x", base_url="http://h/v1", price=(0, 0)),
    ):
        assert llm.local
        assert worst_usd(llm) == 0.0


def test_a_price_of_a_long_prompt_is_the_stepped_one() -> None:
    price = Price((1.0, 1.0, 1.0), ((100, (2.0, 2.0, 3.0)),))

    assert price.usd(100, 1) == 101.0
    assert price.usd(101, 1) == 205.0


def test_cached_input_has_a_price_of_its_own() -> None:
    price = price_of("openai", "gpt-4.1-mini")

    assert price is not None
    assert price.usd(100, 0, cached=100) == pytest.approx(100 * 1e-7)


rates = st.tuples(*[st.floats(0, 1e-3)] * 3)


@given(rates, rates, st.integers(0, 9999), st.integers(0, 999), st.integers(0, 9999), st.integers(0, 9999))
def test_no_call_costs_more_than_was_set_aside_for_it(
    base: tuple[float, float, float],
    long: tuple[float, float, float],
    tokens_in: int,
    tokens_out: int,
    less: int,
    cached: int,
) -> None:
    price = Price(base, ((5000, long),))

    assert price.usd(max(0, tokens_in - less), tokens_out, cached=cached) <= price.at_most(tokens_in, tokens_out) + 1e-9


@given(st.lists(st.text(max_size=50), min_size=1, max_size=4), st.text(max_size=20))
def test_the_bound_of_input_tokens_covers_every_byte(texts: list[str], prefill: str) -> None:
    messages = tuple({"role": "user", "content": text} for text in texts)

    assert tokens_in_at_most(Request(messages=messages, prefill=prefill)) >= len("".join([*texts, prefill]).encode())


@given(st.lists(st.floats(-700, 0), min_size=1, max_size=8))
def test_normalised_scores_keep_their_order_and_sum_to_one(scores: list[float]) -> None:
    import math

    made = normalised(scores)

    assert sum(map(math.exp, made)) == pytest.approx(1.0)
    assert made.index(max(made)) == scores.index(max(scores)) or max(scores) - scores[made.index(max(made))] < 1e-9


@pytest.mark.parametrize(
    ("options", "said"),
    [({"requests_per_minute": 0}, "requests_per_minute is 0"), ({"price": 5}, "price is 5"),
     ({"price": (-1.0, 2.0)}, "price is"), ({"price": ("1", "2")}, "price is"), ({"timeout_s": "a"}, "timeout_s is 'a'"),
     ({"deadline_s": -1}, "deadline_s is -1"), ({"temperature": "hot"}, "temperature is 'hot'"),
     ({"attempts": 1.5}, "attempts is 1.5; give a whole number above 0")],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_named_when_connecting(options: dict[str, Any], said: str) -> None:
    """Before any call, and never counted as money."""
    with pytest.raises(LLMError, match=said):
        connect("openai/gpt-4.1-mini", **options)


def test_no_model_is_named_as_such() -> None:
    """A name that was left empty by a variable, say."""
    with pytest.raises(LLMError, match="the model is None; name one"):
        connect(None)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("fields", "said"),
    [({"max_tokens": 0}, "max_tokens"), ({"temperature": 3}, "temperature"), ({"answers": ("a", "a")}, "answers"),
     ({"answers": (" ",)}, "answers")],
)  # fmt: skip
def test_a_field_that_makes_no_sense_is_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(LLMError, match=said):
        connect("openai/gpt-4.1-mini").request("hi", **fields)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "messages", [[], [{"role": "user"}], [{"role": "wizard", "content": "x"}], [{"role": "user", "content": 3}], ["x"]]
)
def test_messages_that_are_none_are_refused_before_any_call(messages: list[object]) -> None:
    with pytest.raises(LLMError) as caught:
        connect("openai/gpt-4.1-mini").request(messages)  # pyright: ignore[reportArgumentType]

    assert caught.value.kind == "request"


def test_the_option_decides_then_the_variable_then_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    by_key, why_key = choose_model()
    monkeypatch.setenv("TRACE_OPT_MODEL", "ollama/llama3")
    by_variable, why_variable = choose_model()
    by_option, why_option = choose_model("openai/gpt-4.1")

    assert by_key is not None
    assert by_variable is not None
    assert by_option is not None
    assert [by_key.name, by_variable.name, by_option.name] == [
        "anthropic/claude-sonnet-4-5", "ollama/llama3", "openai/gpt-4.1"
    ]  # fmt: skip
    assert "ANTHROPIC_API_KEY" in why_key
    assert "TRACE_OPT_MODEL" in why_variable
    assert "--model" in why_option


def test_without_anything_there_is_no_model_and_the_reason_says_how_to_get_one() -> None:
    llm, why = choose_model()

    assert llm is None
    assert "--model" in why
    assert "OPENAI_API_KEY" in why
