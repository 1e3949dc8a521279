"""A local model as policy and as language model: what it says, with which probabilities, under which adapter."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.refine.tiny_llama import WORDS, tiny_policy
from trace_opt import Adapter, record, trace
from trace_opt.core.graph import ParameterNode
from trace_opt.errors import LLMError
from trace_opt.llm.meter import metering
from trace_opt.llm.replay import capture, replay
from trace_opt.refine.estimators.base import Sample
from trace_opt.refine.estimators.grpo import GRPO
from trace_opt.refine.estimators.harpg import HARPG
from trace_opt.refine.local import Completions
from trace_opt.refine.sampling import score

CHATML = (
    "{% if messages[0]['role'] != 'system' %}up up up {% endif %}"
    "{% for m in messages %}{{ '0 ' if m['role'] == 'system' else '1 ' if m['role'] == 'user' else '2 ' }}"
    "{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}2 {% endif %}"
)
"""A template that, like SmolLM2's, puts in words of its own where there is no system message."""


def moved(policy: Any, seed: int = 1, size: float = 0.5) -> Adapter:
    """An adapter that changes what a policy says, which stands in it afterwards."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=size)
    return policy.dump()


def learning(policy: Any, **options: Any) -> Any:
    completions = policy.sample(["go left", "right up go"], 6, max_tokens=8, seed=4, **options)
    return completions, policy.batch(completions, [float(row % 3) for row in range(12)])


def test_scores_are_those_it_was_sampled_with_and_a_shared_prompt_changes_nothing() -> None:
    """Token by token, in one pass with prompts read once, and row by row without sharing: the same log probabilities."""
    policy = tiny_policy()
    moved(policy)
    completions, batch = learning(policy, temperature=0.7)
    rows = [batch.log_probs[i, : len(said)].tolist() for i, said in enumerate(completions.tokens)]
    for row, said in zip(rows, completions.log_probs, strict=True):
        assert row == pytest.approx(said, abs=1e-5)
    apart = score(
        policy.model, batch.prompts, batch.groups, batch.actions["tokens"], batch.mask, batch.actions["temperature"],
        shared=False,
    )  # fmt: skip
    assert torch.allclose(apart, batch.log_probs, atol=1e-5)
    assert batch.log_probs[~batch.mask].abs().sum() == 0
    some = torch.tensor([7, 2])
    assert torch.allclose(policy.log_prob(batch.rows(some)), batch.log_probs[some], atol=1e-5)


def test_what_ends_a_completion_belongs_to_it() -> None:
    """The end token is the last of a row that ended, with its probability, and stands in no text."""
    completions, batch = learning(tiny_policy())
    ended = [row for row in completions.tokens if 0 in row]
    assert ended
    assert all(row.index(0) == len(row) - 1 for row in ended)
    assert all(len(row) == 8 for row in completions.tokens if 0 not in row)
    assert not any("<end>" in text for text in completions.texts)
    assert batch.mask.sum(1).tolist() == [len(row) for row in completions.tokens]
    assert batch.returns.tolist() == [float(row % 3) for row in range(12)]


def test_draws_follow_the_models_distribution() -> None:
    """Of 4000 single tokens each is met as often as the model says, within 4.5 standard errors."""
    policy = tiny_policy()
    moved(policy)
    drawn = policy.sample(["go left"], 4000, max_tokens=1, temperature=0.8)
    counts = torch.bincount(torch.tensor([row[0] for row in drawn.tokens]), minlength=len(WORDS))
    with torch.no_grad():
        logits = policy.model(torch.tensor([policy.tokens_of("go left")])).logits[0, -1] / 0.8
    expected = 4000 * logits.softmax(-1)
    assert bool(((counts - expected).abs() < 4.5 * expected.sqrt() + 1).all())
    token, said = drawn.tokens[0][0], drawn.log_probs[0][0]
    assert said == pytest.approx(float(logits.log_softmax(-1)[token]), abs=1e-5)


def test_a_row_depends_on_its_prompt_its_place_and_the_seed_alone() -> None:
    """Other prompts and further rows change no row; equal prompts and other seeds do not repeat one another."""
    policy = tiny_policy()
    alone = policy.sample(["go left"], 3, max_tokens=8, seed=7)
    beside = policy.sample(["right up go left", "go left"], 3, max_tokens=8, seed=7)
    more = policy.sample(["go left"], 5, max_tokens=8, seed=7)
    assert beside.tokens[3:] == alone.tokens == more.tokens[:3]
    assert beside.prompt == (0, 0, 0, 1, 1, 1)
    assert policy.sample(["go left"], 3, max_tokens=8, seed=8).tokens != alone.tokens
    twice = policy.sample(["go left", "go left"], 3, max_tokens=8, seed=7)
    assert twice.tokens[3:] != twice.tokens[:3]
    assert len({policy.sample(["go left"], 1, temperature=0, seed=seed).tokens for seed in range(3)}) == 1


def test_the_same_update_gives_the_same_bits() -> None:
    """Sampling, scoring and an update of the adapter repeat bit for bit in float32, from any loaded state."""
    found: list[tuple[Any, ...]] = []
    for _ in range(3):
        policy = tiny_policy()
        policy.load(Adapter())
        for _ in range(2):
            completions, batch = learning(policy)
            GRPO(policy, lr=0.05, kl=0.1).update(Sample(batch))
        found.append((completions, policy.dump()))
    assert found[0] == found[1] == found[2]
    assert found[0][1]


def test_the_empty_adapter_is_the_base_model_and_every_adapter_comes_back_bit_for_bit() -> None:
    """Nothing learned says what the base says; load of a dump restores the bits, in this policy and another of its kind."""
    policy, other = tiny_policy(), tiny_policy(name="other")
    _, batch = learning(policy)
    assert torch.equal(policy.reference(batch), policy.log_prob(batch).detach())
    assert policy.dump() == Adapter()
    learned = moved(policy)
    after = policy.log_prob(batch).detach()
    assert not torch.allclose(after, batch.log_probs, atol=1e-2)
    assert torch.equal(policy.reference(batch), batch.reference)
    policy.load(Adapter())
    assert torch.equal(policy.log_prob(batch).detach(), batch.log_probs)
    assert policy.dump() == Adapter()
    for one in (policy, other):
        one.load(learned)
        assert one.dump() == learned
        assert torch.equal(one.log_prob(batch).detach(), after)


def test_weights_that_an_optimizer_moved_are_seen() -> None:
    """A fused optimizer writes without counting it as a write; `dump` sees it all the same."""
    policy = tiny_policy()
    torch.optim.AdamW(list(policy.parameters()), fused=True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.1, fused=True)
    before = policy.dump()
    for weight in policy.parameters():
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert policy.dump() != before


def test_a_rollout_asks_under_its_own_adapter_and_leaves_the_standing_weights_alone() -> None:
    """In a rollout the adapter in force answers; a graph made before can still be differentiated, the weights are the same."""
    policy = tiny_policy()
    learned = moved(policy)
    policy.load(Adapter())
    standing = policy.sample(["go"], 4, max_tokens=8)
    _, batch = learning(policy)
    said = policy.log_prob(batch).sum()
    places = [weight.data_ptr() for weight in policy.parameters()]

    @trace
    def reflect() -> str:
        return policy("go", max_tokens=8)

    with record(values={"tiny": learned}) as graph:
        answered = reflect()
    assert policy.sample(["go"], 4, max_tokens=8) == standing
    assert [weight.data_ptr() for weight in policy.parameters()] == places
    gradient = torch.autograd.grad(said, list(policy.parameters()))
    assert any(bool(g.abs().sum() > 0) for g in gradient)
    assert any(isinstance(node, ParameterNode) and node.name == "tiny" for node in graph.nodes)
    before = policy("go", max_tokens=8)
    policy.adapter.value = learned
    assert policy("go", max_tokens=8) == str(answered) != before


def test_a_policy_answers_as_a_language_model() -> None:
    """Length, end, stop texts, prefill and costs are a request's; a seed decides what is drawn."""
    policy = tiny_policy(temperature=1.0)
    with metering() as meter:
        reply = policy.reply("go left", max_tokens=5, seed=3)
        again = policy.reply("go left", max_tokens=5, seed=3)
        policy.sample(["go left", "up"], 2, max_tokens=1)
    assert reply == again
    assert (reply.cost.calls, reply.cost.tokens_in, reply.cost.usd) == (1, 2, 0.0)
    assert (meter.cost.calls, meter.cost.tokens_in) == (6, 2 * 2 + 3)
    assert meter.cost.tokens_out == 2 * reply.cost.tokens_out + 4
    texts = [policy.reply("go left", max_tokens=30, seed=seed) for seed in range(8)]
    assert {r.finish for r in texts} <= {"stop", "length"}
    long = next(r for r in texts if len(set(r.text.split())) > 2)
    seed, stop = texts.index(long), long.text.split()[2]
    cut = policy.reply("go left", max_tokens=30, seed=seed, stop=(stop,))
    assert cut.text == long.text.partition(stop)[0]
    assert cut.finish == "stop"
    assert policy.reply("go", prefill=" left", max_tokens=5, seed=3).text == reply.text


def test_answers_are_scored_as_whole_continuations() -> None:
    """The log probabilities of given answers are those of their tokens, normalised over them."""
    policy = tiny_policy()
    policy.adapter.value = moved(policy)
    answers = ("left", "left up", "right")
    reply = policy.reply("go", answers=answers)
    pairs = policy.written([("go", answer) for answer in answers])
    batch = policy.batch(pairs, [0.0] * 3)
    with torch.no_grad():
        whole = policy.log_prob(batch)
    totals = torch.tensor([float(whole[i, : len(answer.split())].sum()) for i, answer in enumerate(answers)])
    assert reply.logprobs == pytest.approx(totals.log_softmax(0).tolist(), abs=1e-5)
    assert math.fsum(map(math.exp, reply.logprobs)) == pytest.approx(1)
    assert reply.text == answers[int(totals.argmax())]


def test_conversations_are_written_by_the_template_with_a_system_message_of_ours() -> None:
    """No template puts in a system message of its own; an assistant's last message is continued; a schema is asked in words."""
    policy = tiny_policy(raw=False, system="so")
    with pytest.raises(LLMError, match=r"has no chat template; make the policy with raw=True"):
        policy.tokens_of("go")
    policy.tokenizer.chat_template = CHATML

    def words(prompt: Any, **options: Any) -> str:
        return policy.tokenizer.decode(policy.tokens_of(prompt, **options))

    assert words("go") == "0 so 1 go 2"
    assert words([{"role": "system", "content": "hm"}, {"role": "user", "content": "go"}]) == "0 hm 1 go 2"
    assert words([{"role": "user", "content": "go"}, {"role": "assistant", "content": "left"}]) == "0 so 1 go 2 left"
    assert words("go", prefill="right") == "0 so 1 go 2 right"
    assert words("go", raw=True) == "go"
    assert (
        policy.reply("go", schema={"type": "object"}, max_tokens=3).cost.tokens_in
        > policy.reply("go", max_tokens=3).cost.tokens_in
    )
    with pytest.raises(LLMError, match="reads text only"):
        policy.reply([{"role": "user", "content": [{"type": "text", "text": "go"}]}])


def test_many_threads_get_what_one_gets() -> None:
    """Requests and samples from eight threads under two adapters answer as they do one after the other."""
    policy = tiny_policy(temperature=1.0)
    learned = [Adapter(), moved(policy)]
    policy.load(Adapter())

    def ask(number: int) -> Any:
        with record(values={"tiny": learned[number % 2]}, seed=number):
            text = policy.reply(f"go {WORDS[2 + number % 4]}", max_tokens=6)

        drawn = policy.sample(["up go"], 2, max_tokens=6, seed=number)
        return str(text.value.text), drawn

    alone = [ask(number) for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == alone
    assert len({text for text, _ in alone}) > 2


def test_a_call_that_is_given_up_ends_at_the_next_token() -> None:
    """Cancelling a request leaves the policy's thread free at once and costs the reservation only."""
    policy = tiny_policy()
    policy.dump()
    begun, go_on, tokens = threading.Event(), threading.Event(), []

    def slow(row: int, said: list[int]) -> bool:
        tokens.append(len(said))
        begun.set()
        go_on.wait(10)
        return False

    policy.text_of = lambda said: slow(0, said) or ""

    async def give_up() -> None:
        task = asyncio.ensure_future(policy.asend(policy.request("go", max_tokens=50, stop=("never",))))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        go_on.set()
        assert task.cancelled()

    asyncio.run(give_up())
    policy.thread.submit(bool).result(10)
    assert len(tokens) == 1


def test_a_replay_answers_without_the_model(tmp_path: Path) -> None:
    """What was captured is answered under the same adapter without loading a model; another adapter is another call."""
    with capture(tmp_path / "calls.jsonl"):
        said = tiny_policy(temperature=1.0)("go left", max_tokens=5, seed=1)
    fresh = tiny_policy(temperature=1.0)
    with replay(tmp_path / "calls.jsonl"):
        assert fresh("go left", max_tokens=5, seed=1) == said
        fresh.adapter.value = Adapter(b"other")
        with pytest.raises(LLMError, match="holds no call"):
            fresh("go left", max_tokens=5, seed=1)
    assert fresh._made is None


def test_half_precision_scores_what_it_said_by_its_own_pass() -> None:
    """In bfloat16 the old log probabilities of a batch are exactly those of the update's first pass, so ratios start at 1."""
    policy = tiny_policy(dtype="bfloat16")
    moved(policy)
    _, batch = learning(policy)
    assert batch.log_probs.dtype == torch.float32
    assert torch.equal(policy.log_prob(batch).detach(), batch.log_probs)
    assert {weight.dtype for weight in policy.parameters()} == {torch.float32}
    assert policy.model.get_output_embeddings().weight.dtype == torch.bfloat16


def test_it_can_be_differentiated_twice() -> None:
    """HARPG's Hessian-vector product goes through the language model: finite, and the change of the gradient on a short step."""
    policy = tiny_policy(layers=[-1])
    moved(policy)
    _, batch = learning(policy)
    estimator = HARPG(policy, lr=0.1)
    vector = [torch.ones_like(weight) for weight in estimator.weights]
    curved = estimator.hessian_vector(batch, vector)
    assert all(bool(torch.isfinite(part).all()) for part in curved)
    assert any(bool(part.abs().sum() > 0) for part in curved)


def test_an_adapter_may_be_in_the_last_blocks_only() -> None:
    """`layers` says which blocks carry one; an adapter of another choice or rank is refused by name."""
    policy = tiny_policy(layers=[-1])
    assert {name.split(".layers.")[1][0] for name in policy.lora.weights} == {"1"}
    assert len(policy.lora.weights) == 14
    other = moved(tiny_policy())
    with pytest.raises(ValueError, match="does not fit this policy, which has rank 4 in 7 layers"):
        policy.load(other)
    policy.adapter.value = other
    with pytest.raises(LLMError, match="cannot take the adapter in force"):
        policy("go", max_tokens=2)
    with pytest.raises(LLMError, match="but the model has the blocks 0 to 1"):
        tiny_policy(layers=[2]).dump()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'; give one of"),
        ({"attention": "flash"}, "attention is"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_once(options: dict[str, Any], said: str) -> None:
    """A wrong option raises before anything is loaded."""
    with pytest.raises(LLMError, match=said):
        tiny_policy(**options)


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ("go left", {}, r"sample got the single prompt 'go left'; give a list of prompts: \[prompt\]"),
        ([{"role": "user", "content": "go"}], {}, r"sample got the single prompt .*; give a list of prompts"),
        ([], {}, "sample got 0 prompts and n=1; give at least one of each"),
        (["go"], {"n": 1.5}, r"sample got n=1\.5; give a whole number"),
        (["go"], {"max_tokens": 0}, "sample got max_tokens=0; give a whole number"),
        (["go"], {"temperature": -1}, "sample got temperature=-1; give a number of 0 or more"),
        (["go"], {"temperature": float("nan")}, "sample got temperature=nan"),
    ],
)
def test_draws_that_make_no_sense_are_refused_before_anything_is_loaded(
    prompts: Any, options: dict[str, Any], said: str
) -> None:
    policy = tiny_policy()
    with pytest.raises(ValueError, match=said):
        policy.sample(prompts, **options)
    assert policy._made is None


def test_an_adapter_of_another_alpha_is_refused() -> None:
    """It would say something else there; it carries its alpha, whether it is loaded or in force."""
    learned = moved(tiny_policy())
    policy = tiny_policy(alpha=16.0)
    with pytest.raises(ValueError, match=r"trained at alpha 8\.0, and this policy has alpha 16\.0.*with alpha=8\.0"):
        policy.load(learned)
    policy.adapter.value = learned
    with pytest.raises(LLMError, match="cannot take the adapter in force"):
        policy("go", max_tokens=2)
    plain = Adapter.of(learned.tensors())
    policy.load(plain)
    assert policy.dump() == plain, "a file that names no alpha is taken as it is"


def test_a_prompt_beyond_the_context_is_refused_before_it_is_read() -> None:
    """Prompt and answer must fit the model's positions; the error is of the kind that callers shorten prompts on."""
    policy = tiny_policy()
    for ask in (lambda: policy("go " * 60, max_tokens=10), lambda: policy.sample(["go " * 60], max_tokens=10)):
        with pytest.raises(
            LLMError, match="has a context of 64 tokens; the prompt has 60, the answer up to 10"
        ) as caught:
            ask()
        assert caught.value.kind == "too_long"


def test_a_missing_extra_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without peft the first use says what to install; making the policy needs nothing."""
    policy = tiny_policy()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LLMError, match=r"needs 'peft'; pip install 'trace-opt-framework\[refine\]'"):
        policy.dump()


def test_completions_survive_json_and_join_with_their_groups_apart() -> None:
    """Plain JSON gives them back exactly; joined ones of equal prompts stay groups of their own."""
    policy = tiny_policy()
    drawn = policy.sample(["go", [{"role": "user", "content": "up"}]], 2, max_tokens=4)
    assert Completions.of_json(drawn.to_json()) == drawn
    both = Completions.joined([drawn, drawn])
    assert both.prompt == (0, 0, 1, 1, 2, 2, 3, 3)
    assert both.rows([5]).texts == (drawn.texts[1],)
    cold = policy.sample(["go"], temperature=0.5, max_tokens=2)
    with pytest.raises(ValueError, match="cannot be joined"):
        Completions.joined([drawn, cold])
