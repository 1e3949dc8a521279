"""The parts of benchmarks/headlines_peers.py that its fairness rests on: one prompt, one list of proposals, one server."""

from __future__ import annotations

import itertools
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.loading import module_at
from trace_opt import Parameter, connect
from trace_opt.core.parameter import Demonstrations
from trace_opt.optim.reply import read
from trace_opt.optim.schema import schema_of
from trace_opt.testing import ScriptedLLM

ROOT = Path(__file__).parents[1]
agent = module_at(ROOT / "agents" / "headlines.py", "agent_headlines")
server = module_at(ROOT / "benchmarks" / "headlines_server.py", "benchmark_headlines_server")
rivals = module_at(ROOT / "benchmarks" / "headlines_rivals.py", "benchmark_headlines_rivals")

HEADLINE = "Banks raise rates"
SHOWN = [{"headline": "Cup final drawn", "topic": "sports"}, {"headline": "New phone out", "topic": "tech"}]


def model() -> ScriptedLLM:
    return ScriptedLLM(lambda _: "tech")


def fields(*names: str) -> dict[str, Any]:
    """A request as dspy's ChatAdapter ends it."""
    asked = ", then ".join(f"`[[ ## {name} ## ]]`" for name in names)
    text = (
        "[[ ## basic_instruction ## ]]\nDo it.\n\nRespond with the corresponding output fields, starting with the field "
        f"{asked}, and then ending with the marker for `[[ ## completed ## ]]`."
    )
    return {"model": "proposer", "messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(
    ("turns", "cue", "prefix", "shown"),
    list(itertools.product([False, True], ["", "Topic:"], ["", "News: "], [[], SHOWN])),
)
def test_a_peers_prompt_asks_the_model_exactly_what_the_agent_asks(turns, cue, prefix, shown):
    """Messages, start of the answer and answers to choose from are the same, in every layout."""
    for_agent, for_peer = model(), model()
    workflow = agent.Classifier(for_agent, 10)
    workflow.layout.value = agent.TURNS if turns else agent.ONE_MESSAGE
    workflow.cue.value, workflow.prefix.value = cue, prefix
    workflow.demonstrations.value = Demonstrations(10, tuple(shown))
    assert workflow(HEADLINE) == "tech"
    base = {"topics": workflow.order.value, "prefix": prefix, "cue": cue, "turns": turns}
    messages = rivals.prompt(base, workflow.instruction.value, shown, HEADLINE)
    answer = server.Server(for_peer).answer({"model": "topic", "messages": messages})
    assert answer["choices"][0]["message"]["content"] == "tech"
    assert for_peer.requests == for_agent.requests
    assert rivals.feedback({"headline": HEADLINE, "topic": "business"}, "tech") == (
        agent.guide("tech", {"headline": HEADLINE, "topic": "business"}).text
    )


def test_all_forms_take_their_proposals_from_one_list_in_one_order():
    """Whoever asks, in whatever form, gets the next instruction of the seed's order; only asking for one takes one."""
    parameter = Parameter("Do it.", name="instruction")
    by_schema = {
        "model": "proposer", "messages": [{"role": "user", "content": "# Answer"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "values", "schema": schema_of([parameter])}},
    }  # fmt: skip
    fenced = {"model": "proposer", "messages": [{"role": "user", "content": [{"type": "text", "text": "Write ```"}]}]}
    mixed, alone = server.Proposer(7), server.Proposer(7)
    order = [alone.answer(fenced).strip("`\n") for _ in server.PROPOSALS]
    first = read(mixed.answer(by_schema), [parameter]).values["instruction"]
    assert "proposed_instruction" not in mixed.answer(fields("summary"))
    second = mixed.answer(fields("proposed_instruction")).split(" ## ]]\n")[1].split("\n\n[[")[0]
    third = mixed.answer(fenced).strip("`\n")
    assert [first, second, third] == order[:3]
    assert sorted(order) == sorted(server.PROPOSALS)
    assert order != [server.Proposer(8).answer(fenced).strip("`\n") for _ in server.PROPOSALS]
    assert alone.answer(fenced).strip("`\n") == order[0], "the list starts anew"
    with pytest.raises(ValueError, match="neither"):
        mixed.answer({"messages": [{"role": "user", "content": "hello"}]})


def test_the_server_answers_its_own_token_only_and_counts_by_model():
    """Over HTTP: a client with the token is served, others are refused and take nothing from the list."""
    parameter = Parameter("Do it.", name="instruction")
    with server.Server(model()).running() as serving:
        serving.begin(7)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            rivals.post({"url": serving.url, "key": "wrong"}, "proposer", [{"role": "user", "content": "```"}])
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            rivals.post({"url": serving.url, "key": serving.key}, "nobody", [{"role": "user", "content": "```"}])
        assert "no model 'nobody'" in json.load(refused.value)["error"]["message"]
        elsewhere = urllib.request.Request(f"{serving.url}/models", b"{}", {"Authorization": f"Bearer {serving.key}"})
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(elsewhere)
        ours = connect("openai/proposer", base_url=serving.url, api_key=serving.key, cache=None, price=(0.0, 0.0))
        reply = ours.reply([{"role": "user", "content": "# Answer"}], schema=schema_of([parameter]))
        expected = server.Proposer(7).answer({"messages": [{"role": "user", "content": "```"}]}).strip("`\n")
        assert read(reply.text, [parameter]).values == {"instruction": expected}
        topic = rivals.post({"url": serving.url, "key": serving.key}, "topic", [{"role": "user", "content": HEADLINE}])
        assert topic == "tech"
        assert serving.counts == {"nobody": 1, "proposer": 1, "topic": 1, "computed": 1}


def test_evaluations_end_at_their_limit():
    """The count refuses the first one beyond it and does not count that."""
    count = rivals.Count(2)
    count.take()
    count.take()
    with pytest.raises(rivals.SpentError, match="the 2 evaluations"):
        count.take()
    assert count.used == 2
