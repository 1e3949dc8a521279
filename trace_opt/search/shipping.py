"""What travels between a driver and its workers: the problem once, rollouts as orders, what came of them back.

Functions and classes travel by name, never by value: the worker loads the same module, from the same file where it is no
installed one, so both sides have one class for one name, a recording shows the same source, and no key that a closure
happens to hold goes along. A problem that only a function can make (its workflow is a closure) is made again there by
the function that made it. Both sides are compared by the hashes of everything their workflow and guide reach.

Between processes of one run the standard pickling is used; nothing that is read back from disk ever is.
"""

from __future__ import annotations

import io
import pickle  # noqa: TID251 # between the live processes of one run, never from disk
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.codec import decode, encode
from trace_opt.core.graph import Graph
from trace_opt.core.memory import Saved
from trace_opt.core.rollout import Cost, Rollout
from trace_opt.errors import LLMError, ProblemError, TraceOptError
from trace_opt.llm.faults import CallError
from trace_opt.search.sources import is_foreign

if TYPE_CHECKING:
    from trace_opt.core.binding import Bound
    from trace_opt.core.node import Node
    from trace_opt.core.parameter import Parameter
    from trace_opt.search.rolling import Job

_MAIN, _MAIN_THERE = "__main__", "__mp_main__"


@dataclass(frozen=True, slots=True)
class Parcel:
    """Something pickled, with what has to be loaded before it can be opened.

    Attributes:
        data: The pickle.
        files: Name and file of each module that is not found by its name alone.
    """

    data: bytes
    files: tuple[tuple[str, str], ...] = ()


def pack(value: Any) -> Parcel:
    """A value ready to travel.

    Raises:
        Exception: whatever pickling it raises; `sendable` puts it in a sentence.
    """
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dump(value)
    files = tuple((name, file) for name in pickler.modules if (file := _file_of(name)) is not None)
    return Parcel(buffer.getvalue(), files)


def unpack(parcel: Parcel) -> Any:
    """The value in a parcel.

    Raises:
        ProblemError: a file that it needs is not on this machine.
    """
    for name, file in parcel.files:
        _load(name, file)
    return pickle.loads(parcel.data)  # noqa: S301 # from the process that started this one


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.modules: dict[str, None] = {}

    def reducer_override(self, obj: Any) -> Any:
        """Note where a function or class is from; it is pickled as always."""
        module = getattr(obj, "__module__", None)
        if isinstance(module, str):
            self.modules[module] = None
        return NotImplemented


@lru_cache(maxsize=256)
def _file_of(name: str) -> str | None:
    """The file of a module that is the user's own; None for those that every worker has."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if module is None or file is None or name.partition(".")[0] == "trace_opt":
        return None
    if name == _MAIN:
        # what it defines comes back under the name that it has there
        sys.modules.setdefault(_MAIN_THERE, module)
    path = str(Path(file).absolute())
    return None if is_foreign(path) else path


def _load(name: str, file: str) -> None:
    """Have a module that another process has, by its name where it is found, else from its file.

    Raises:
        ProblemError: the file is not on this machine.
    """
    there = _MAIN_THERE if name == _MAIN else name
    if there in sys.modules:
        return
    if there == name:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or name):
                raise  # it was found, and what it needs was not
        else:
            return
    spec = spec_from_file_location(there, file)
    if spec is None or spec.loader is None or not Path(file).is_file():
        raise ProblemError(
            f"a worker needs the file {file!r} to load {name!r}, and it is not on the worker's machine; put it at the "
            "same path there, or in an installed package"
        )
    module = module_from_spec(spec)
    sys.modules[there] = module
    if name == _MAIN:
        sys.modules[_MAIN] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(there, None)
        raise


# -- the problem -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipment:
    """All that a worker needs before its first rollout.

    Attributes:
        problem: Workflow and guide, packed; or what makes a problem that has both.
        made: Whether `problem` holds a function to call.
        base: Values of the parameters where they differ from the source's, by full name.
        path: Where modules are looked for.
        taped: Whether the driver writes model replies down or answers from a file.
        slots: Rollouts at once.
        threads: Threads of torch, or None where the driver has not loaded it: sums of floats depend on them.
        timeout: Seconds that a rollout may take, or None.
    """

    problem: Parcel
    made: bool
    base: Parcel
    path: tuple[str, ...]
    taped: bool
    slots: int = 1
    threads: int | None = None
    timeout: float | None = None


def ship(
    workflow: Callable[..., Any], guide: Any, reload: Callable[[], Any] | None, parameters: Mapping[str, Parameter[Any]]
) -> Shipment:  # fmt: skip
    """A problem ready to travel.

    Args:
        workflow, guide: Functions.
        reload: Makes the problem again: gives something with a `workflow` and a `guide`; None where it cannot be.
        parameters: Those whose values travel along, by full name.

    Raises:
        ProblemError: it cannot travel.
    """
    from trace_opt.llm.replay import capturing, replaying

    problem, made = _packed_problem(workflow, guide, reload)
    base = sendable("the parameters' values", {name: parameter.initial for name, parameter in parameters.items()})
    torch: Any = sys.modules.get("torch")
    return Shipment(
        problem=problem, made=made, base=base, path=tuple(str(Path(entry).absolute()) for entry in sys.path),
        taped=capturing() is not None or replaying() is not None,
        threads=None if torch is None else torch.get_num_threads(),
    )  # fmt: skip


def _packed_problem(workflow: Any, guide: Any, reload: Callable[[], Any] | None) -> tuple[Parcel, bool]:
    try:
        parcel = pack((workflow, guide))
        missing = _without_file(parcel)
        if missing is None:
            return parcel, False
        error: Exception = TypeError(f"{missing!r} is defined in no file")
    except Exception as raised:  # noqa: BLE001 # pickling raises anything
        error = raised
    if reload is not None:
        return sendable("the function that makes the problem", reload), True
    name = getattr(workflow, "__qualname__", None) or repr(workflow)
    raise ProblemError(
        f"the workflow {name!r} or its guide cannot be sent to another process ({error!s:.200}); define both at the top "
        "level of a file, hold nothing open in them, or run with executor='local'"
    ) from error


def _without_file(parcel: Parcel) -> str | None:
    """A name of `__main__` that a worker could not load, as in a notebook."""
    main = sys.modules.get(_MAIN)
    needs_main = _MAIN.encode() in parcel.data and getattr(main, "__file__", None) is None
    return _MAIN if needs_main else None


def sendable(what: str, value: Any) -> Parcel:
    """`pack`, with a sentence about what cannot be sent.

    Raises:
        ProblemError: it cannot.
    """
    try:
        return pack(value)
    except Exception as error:
        raise ProblemError(
            f"{what} cannot be sent to another process ({error!s:.200}); use plain data, or classes of a module, or run "
            "with executor='local'"
        ) from error


def opened(shipment: Shipment) -> tuple[Any, Any]:
    """Workflow and guide, in the worker."""
    found = unpack(shipment.problem)
    if not shipment.made:
        return found
    made = found()
    return made.workflow, made.guide


# -- rollouts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One rollout to run in a worker; fields as in `rolling.Job`."""

    candidate: int
    values: dict[str, Any]
    number: int
    example: Any
    bound: Bound
    seed: int
    keep: bool
    training: bool
    apart: bool
    repeat: int
    name: str


def order_of(job: Job, *, keep: bool) -> Parcel:
    """A job ready to travel; what op calls gave before stays here, so a worker makes them again.

    Raises:
        ProblemError: its example or a value cannot travel.
    """
    order = Order(
        candidate=job.candidate, values=_leaves(job.values), number=job.number, example=job.example, bound=job.bound,
        seed=job.seed, keep=keep, training=job.training, apart=job.apart, repeat=job.repeat, name=job.name,
    )  # fmt: skip
    return sendable(job.name, order)


def _leaves(values: dict[str, Any]) -> dict[str, Any]:
    """Values whose tensors lead back to nothing: a gradient travels by the name of the value, not through the graph."""
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return values
    return {
        name: value.detach().requires_grad_() if torch.is_tensor(value) and value.requires_grad else value
        for name, value in values.items()
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Returned:
    """What came of an order.

    Attributes:
        rollout: Without example, values, graph and node, which the driver has or puts in.
        graph: The recording, where one was wanted; JSON text where a value in it cannot be pickled.
        node: The place of the node that feedback is about, or -1.
        saved: What the worker's pure ops have saved since it last said so.
        stuck: Whether the worker has a thread that goes on with a rollout which took too long.
    """

    rollout: Rollout
    graph: Graph | str | None
    node: int
    saved: Saved
    stuck: bool = False


def returned(rollout: Rollout, saved: Saved, *, stuck: bool = False) -> bytes:
    """A rollout ready to travel back; values that cannot be pickled come as the store would keep them."""
    graph = rollout.graph
    if graph is not None:
        graph.layout()
    node = -1 if rollout.node is None else rollout.node.index
    bare = replace(rollout, example=None, values={}, graph=None, node=None)
    found = Returned(rollout=bare, graph=graph, node=node, saved=saved, stuck=stuck)
    try:
        return pickle.dumps(found, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 # pickling raises anything
        text = None if graph is None else graph.to_json()
        found = replace(found, rollout=replace(bare, output=_Plain(encode(bare.output))), graph=text)
        return pickle.dumps(found, pickle.HIGHEST_PROTOCOL)


@dataclass(frozen=True, slots=True)
class _Plain:
    """An output as plain data."""

    data: Any


def taken_in(found: Returned, job: Job, parameters: Mapping[str, Parameter[Any]], cost: Cost) -> Rollout:
    """A rollout that came back, tied to what it is about here.

    Args:
        found: What came back.
        job: What was asked for.
        parameters: By full name.
        cost: What its calls came to.
    """
    output = found.rollout.output
    if isinstance(output, _Plain):
        output = decode(output.data)
    graph = Graph.from_json(found.graph) if isinstance(found.graph, str) else found.graph
    node: Node[Any] | None = None
    if graph is not None:
        order = graph.layout().order
        for name, leaf in graph.parameters.items():
            leaf.parameter = parameters.get(name)
            leaf.value = job.values.get(name, leaf.value)
        graph.values = dict(job.values)
        node = order[found.node] if 0 <= found.node < len(order) else None
    # the gradients of a training rollout say all that its values would
    known = {} if found.rollout.gradients is not None else job.values
    return replace(found.rollout, example=job.example, values=known, graph=graph, node=node, output=output, cost=cost)


# -- errors ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception ready to travel.

    Attributes:
        text: What it says, with its class where `data` is None.
        data: Its pickle, or None where it has none.
        model: Fields of a model's error, which its class does not pickle.
        notes: What was added to it.
    """

    text: str
    data: bytes | None = None
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notes: tuple[str, ...] = ()


def packed_error(error: BaseException) -> Fault:
    """An exception ready to travel."""
    notes = tuple(getattr(error, "__notes__", ()))
    if isinstance(error, LLMError):
        spent = getattr(error, "spent", None)
        return Fault(
            str(error), model={"kind": error.kind, "retry_after": error.retry_after, "spent": spent}, notes=notes
        )
    text = f"{type(error).__name__}: {error}"
    try:
        data = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        same = type(pickle.loads(data)) is type(error)  # noqa: S301 # made on the line before
    except Exception:  # noqa: BLE001 # pickling raises anything
        return Fault(text, notes=notes)
    return Fault(text, data if same else None, notes=notes)


def unpacked_error(fault: Fault) -> BaseException:
    """The exception again; one whose class is not to be had here keeps its words."""
    error: BaseException = TraceOptError(f"another process raised {fault.text}")
    if fault.model:
        error = CallError(fault.text, **cast("Any", fault.model))
    elif fault.data is not None:
        with suppress(Exception):
            error = pickle.loads(fault.data)  # noqa: S301 # from a process of this run
    error.__notes__ = list(fault.notes)
    return error
