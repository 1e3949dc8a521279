"""Learned weights as a value: known by their bytes, the same through JSON, the store, processes and recordings."""

from __future__ import annotations

import copy
import json
import pickle  # noqa: TID251 # what processes exchange
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import tensors
from trace_opt import Budget, Parameter, load_values, optimize, record, trace
from trace_opt.cli.values import literal, python_module, value_text
from trace_opt.core.adapter import Adapter
from trace_opt.core.codec import canonical, decode, dump_value, encode, restore_value, values_hash
from trace_opt.core.content import content
from trace_opt.core.graph import Graph
from trace_opt.errors import ProblemError
from trace_opt.optim.base import Optimizer, Proposal
from trace_opt.optim.demos import Demos
from trace_opt.optim.optoprime import OptoPrime
from trace_opt.optim.text import literal as prompt_text
from trace_opt.search.defaults import default_optimizers, owners
from trace_opt.store import blobs
from trace_opt.store.store import open_store

LEARNED = Adapter.of({"b": torch.arange(6.0).reshape(2, 3), "a": torch.zeros(2, dtype=torch.bfloat16)})


def held() -> Parameter[Adapter]:
    return Parameter(Adapter(), name="policy")


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=5), tensors().filter(lambda t: t.dtype != torch.complex64)))
def test_tensors_come_back_bit_for_bit_and_decide_the_hash(made: dict[str, Any]) -> None:
    """Equal tensors are one value whatever their order; the tensors come back with shape, dtype and bits."""
    adapter = Adapter.of(made)
    again = adapter.tensors()
    assert again.keys() == made.keys()
    for name, tensor in made.items():
        assert (again[name].dtype, again[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(again[name], tensor)
    assert Adapter.of(dict(reversed(made.items()))) == adapter
    assert (adapter == Adapter()) == (not made)


@given(st.binary(max_size=9000))
def test_bytes_round_trip_through_json_blobs_and_pickle(data: bytes) -> None:
    """Through the codec, the store's blobs and to another process an adapter keeps every byte; a blob has its own hash."""
    adapter, shelf = Adapter(data), dict[str, bytes]()

    def put(blob: bytes) -> str:
        shelf[blobs.hash_of(blob)] = blob
        return blobs.hash_of(blob)

    stored = json.loads(blobs.text_of(blobs.store_tensors({"v": [encode(adapter)]}, put)))
    back = decode(blobs.fetch_tensors(stored, shelf.__getitem__))["v"][0]
    for again in (
        back,
        pickle.loads(pickle.dumps(adapter)),
        copy.deepcopy(adapter),
        restore_value(held(), encode(adapter)),
    ):
        assert type(again) is Adapter
        assert (again, again.data, hash(again)) == (adapter, data, hash(adapter))
    assert set(shelf) in (set(), {adapter.hash})
    assert bool(shelf) == (len(encode(adapter)["v"]) > blobs.INLINE)


def test_what_is_only_compared_holds_the_hash_alone() -> None:
    """Canonical texts and digests cost nothing by an adapter's size, and differ where adapters do."""
    large = Adapter(bytes(100_000))
    assert large.hash in canonical(large)
    assert len(canonical(large)) < 120
    assert canonical(large) != canonical(LEARNED)
    assert content(large) == content(Adapter(bytes(100_000))) != content(LEARNED)
    parameters = {"policy": held()}
    assert values_hash(parameters, {"policy": large}) != values_hash(parameters, {"policy": LEARNED})


def test_a_recording_names_its_adapter_without_the_bytes() -> None:
    """A graph is stored for every rollout, so it holds the hash; the value read back equals the adapter and says what it is."""
    parameter = held()
    large = Adapter(bytes(100_000))

    @trace
    def reflect(_: str) -> str:
        return parameter.value.hash[:3]

    with record(values={"policy": large}) as recording:
        reflect("x")
    text = json.dumps(recording.graph.to_json() if hasattr(recording, "graph") else recording.to_json())
    assert large.hash in text
    assert len(text) < 5000
    named = decode(json.loads(json.dumps({"$": "adapter", "hash": large.hash})))
    assert named == large
    assert not named.whole
    assert pickle.loads(pickle.dumps(named)) == named
    with pytest.raises(ValueError, match="known by its hash only; take it from the values of the run's candidate"):
        _ = named.data
    assert isinstance(Graph.from_json(json.loads(text)), Graph)


def test_it_cannot_be_changed_and_shows_as_a_few_letters() -> None:
    """An adapter is immutable; problem texts, pages and the command line show it by twelve letters of its hash."""
    short = LEARNED.hash[:12]
    assert (repr(LEARNED), str(LEARNED)) == (f"Adapter({short})", f"adapter {short}")
    assert value_text(LEARNED) == prompt_text(LEARNED) == f"adapter {short}"
    assert prompt_text([LEARNED]) == f"[adapter {short}]"
    assert LEARNED
    assert not Adapter()
    with pytest.raises(AttributeError, match="cannot be changed"):
        LEARNED.hash = "0"
    with pytest.raises(ValueError, match=r"holds no safetensors .*; give Adapter.of\(tensors\)"):
        Adapter(b"nonsense").tensors()


def test_exported_python_gives_it_back() -> None:
    """`trace-opt export` writes a module whose values load, adapters included."""
    made: dict[str, Any] = {}
    exec(python_module({"policy": LEARNED}, title="x"), made)
    parameter = held()
    load_values([parameter], made["VALUES"])
    assert parameter.value == LEARNED
    assert literal(Adapter()) == "Adapter()"


def test_a_parameter_takes_adapters_only_and_no_other_optimizer_touches_it() -> None:
    """Its kind is its own, no value of another class is allowed, and a search without a refiner says what is missing."""
    parameter = held()
    assert parameter.kind == "adapter"
    assert restore_value(parameter, dump_value(parameter, LEARNED)) == LEARNED
    with pytest.raises(ValueError, match="parameter 'policy' got 'x'; give an Adapter"):
        parameter.value = "x"  # pyright: ignore[reportAttributeAccessIssue]
    assert default_optimizers([parameter]) == []
    assert not OptoPrime().handles(parameter)
    assert not Demos().handles(parameter)
    with pytest.raises(
        ProblemError, match=r"holds the adapter of a local model; give optimizers=\[Refiner\(policy\)\]"
    ):
        owners([parameter], [OptoPrime()])
    assert owners([Parameter(Adapter(), name="still", frozen=True)], []) == {}


class Gives(Optimizer):
    """Proposes one value for the first adapter it is shown."""

    def __init__(self, value: Adapter) -> None:
        self.value = value

    def handles(self, parameter: Parameter[Any]) -> bool:
        return parameter.kind == "adapter"

    async def propose(self, parameters: Any, rollouts: Any, history: Any) -> Proposal:
        return Proposal({parameters[0].name: self.value}, reason="learned")


def test_a_run_keeps_an_adapter_once_and_gives_it_back(tmp_path: Path) -> None:
    """A search accepts it, the store holds its bytes in one blob under its own hash, and applying gives the bytes back."""
    parameter, large = held(), Adapter(bytes(range(256)) * 400)

    @trace
    def answer(x: int) -> int:
        return x if parameter.value == large else -1

    run = optimize(
        answer, list(range(24)), lambda output, x: float(output == x), parameters=[parameter], optimizers=[Gives(large)],
        budget=Budget(trials=1), store=tmp_path / "runs.db",
    )  # fmt: skip
    with sqlite3.connect(tmp_path / "runs.db") as database:
        held_blobs = dict(database.execute("select hash, length(data) from blobs").fetchall())
    database.close()
    assert held_blobs[large.hash] == len(large.data)
    assert max(size for name, size in held_blobs.items() if name != large.hash) < 5000
    saved = open_store(tmp_path / "runs.db").load("last")
    assert saved.best["policy"].data == large.data
    run.apply()
    assert parameter.value == large


def test_settings_go_with_the_tensors() -> None:
    """Numbers of one set give the same bytes in any order, and others other ones; an adapter without them is as it was."""
    tensors, settings = {"a": torch.ones(2)}, {"alpha": 0.1, "beta": 2.0}
    made = Adapter.of(tensors, settings)
    assert made == Adapter.of(tensors, dict(reversed(settings.items())))
    assert made.settings == settings
    assert torch.equal(made.tensors()["a"], tensors["a"])
    plain = Adapter.of(tensors)
    assert plain.settings == Adapter().settings == {}
    assert len({made, plain, Adapter.of(tensors, {"alpha": 0.2})}) == 3
    with pytest.raises(ValueError, match=r"holds no safetensors .*; give Adapter.of\(tensors\)"):
        _ = Adapter(b"no safetensors").settings
