"""`@trace(trainable=True)`: an op whose source is a Parameter.

The op's body reads its own source like any parameter, so what it gives depends on it. The original text runs as it is, in
process: it is the user's own code. Any other text was written by somebody else and runs in a sandbox, where it fails in one
way only: a `CodeError` whose traceback shows the line of the generated source.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_opt.core import code as sources
from trace_opt.core import decoration, generated
from trace_opt.core.code import Contract, capture, checked
from trace_opt.core.context import rollout
from trace_opt.core.decoration import Uses
from trace_opt.core.module import HELD, Module
from trace_opt.core.node import class_of, is_a
from trace_opt.core.parameter import Parameter
from trace_opt.core.sandbox import border, sandbox_of
from trace_opt.errors import CodeError, TraceError

if TYPE_CHECKING:
    from trace_opt.core.sandbox import Sandbox

_KEPT = 256  # sources made ready


class Code:
    """One trainable function: what a proposal must keep, where it runs, and what it may call.

    A function has one Parameter; a method of a `Module` has one for each instance, all with this Code.

    Attributes:
        original: The function as `trace` got it, inner decorators included.
        uses: The functions of the host that generated code may call, by name.
        parameter: The function's Parameter; None for a method, of which each Module has one of its own.
        name: The op's name.
        line: The line of its file on which its `def` stands, or 0 where that is not known.
        is_method: Whether its first argument is the object or class that it is called on.
    """

    __slots__ = ("_checked", "_contract", "_inner", "_lock", "_ready", "_sandbox", "_settled", "_shared", "is_method", "line", "name",
                 "original", "parameter", "uses")  # fmt: skip

    def __init__(
        self, fn: Callable[..., Any], contract: Contract, name: str, *, sandbox: Sandbox,
        uses: Mapping[str, Callable[..., Any]], inner: Sequence[Callable[[Any], Any]],
    ) -> None:  # fmt: skip
        self.original = fn
        self.uses = uses
        self.name = name
        self.is_method = _is_method(contract.fn)
        self.line = decoration.def_line(contract)
        self._contract = contract
        self._settled = False
        self._sandbox = sandbox
        self._inner = tuple(inner)
        self._lock = threading.Lock()
        self._checked: dict[str, str] = {}
        self._ready: dict[str, Callable[..., Any]] = {}
        self._shared = self.make_parameter(name)  # of a method, for calls on anything but a Module
        self.parameter = None if self.is_method else self._shared

    def make_parameter(self, name: str | None) -> Parameter[str]:
        """A Parameter that holds this function's source; without a name it takes its Module's path."""
        made = Parameter(self.source, name=name)
        made.code = self
        return made

    @property
    def source(self) -> str:
        """The original's text."""
        return self._contract.source

    @property
    def sandbox(self) -> Sandbox:
        """Where generated code runs."""
        return self._sandbox

    @property
    def contract(self) -> Contract:
        """What a proposal must keep, and what the module around the function gives it.

        Names that the module defines below the function are known once it has loaded, so they are looked up when first
        needed.
        """
        if not self._settled and self._contract.fn is not None:
            fn: Any = self._contract.fn
            imports, constants = sources._around(fn, self._contract.source)
            taken = set(self.uses)
            self._contract = replace(
                self._contract, hints=sources._hints(fn),
                imports={name: text for name, text in imports.items() if name not in taken},
                constants={name: value for name, value in constants.items() if name not in taken},
            )  # fmt: skip
            self._settled = True
        return self._contract

    # -- proposals ---------------------------------------------------------------------------------------------------

    def check(self, source: Any) -> str:
        """A proposal that keeps the contract and that the sandbox can define, as the text that is kept.

        Raises:
            CodeError: it cannot be used; one sentence, with the line.
            TraceError: the sandbox cannot run here.
        """
        if is_a(source, str) and source == self.source:
            return source
        known = self._checked.get(source) if is_a(source, str) else None
        if known is not None:
            return known
        contract = self.contract
        text = checked(source, contract)
        if text == self.source:
            return text
        if self._sandbox.data:
            known_names = {*self.uses, *(name for hint in contract.hints.values() for name in border.shapes(hint))}
            generated.refuse_unknown(text, contract, known_names)
            if self.is_method:
                generated.refuse_writes(text, contract)
            self._sandbox.check(text, contract.name, preamble=contract.preamble(text))
        with self._lock:
            if len(self._checked) >= _KEPT:
                self._checked.clear()
            self._checked[source] = self._checked[text] = text
        return text

    # -- calls -------------------------------------------------------------------------------------------------------

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the function as the source in force says; of an `async def`, gives what is to be awaited."""
        source = self.held_by(args).value
        fn = self.original if source == self._contract.source else self._made(source)
        return fn(*args, **kwargs)

    def held_by(self, args: tuple[Any, ...]) -> Parameter[str]:
        """The Parameter of a call: that of the Module it is a method of, else the function's own."""
        if not self.is_method or not args:
            return self._shared
        held: Mapping[str, Parameter[str]] = getattr(args[0], "__dict__", {}).get(HELD) or {}
        return next((parameter for parameter in held.values() if parameter.code is self), self._shared)

    def _made(self, source: str) -> Callable[..., Any]:
        """What runs a generated source, with the inner decorators around it."""
        fn = self._ready.get(source) if is_a(source, str) else None
        if fn is None:
            fn = self._runner(checked(source, self.contract))
            for decorate in reversed(self._inner):
                fn = decorate(fn)
            with self._lock:
                if len(self._ready) >= _KEPT:
                    self._ready.clear()
                self._ready[source] = fn
        return fn

    def _runner(self, text: str) -> Callable[..., Any]:
        contract, sandbox = self.contract, self._sandbox
        # in process an async function of the host is awaited as it is
        uses, awaited = generated.awaitable(self.uses) if sandbox.data else (self.uses, "")
        preamble = (contract.preamble(text) if sandbox.data else "") + awaited
        fixed: dict[str, Any] = {"uses": uses, "preamble": preamble, "returns": contract.returns}
        fields = generated.attributes_read(text, contract) if self.is_method and sandbox.data else {}
        draws = "random" in text or "random" in preamble

        def given(args: tuple[Any, ...]) -> tuple[Any, ...]:
            if not (self.is_method and sandbox.data):
                return args
            return (generated.view(args[0], fields, text, contract), *args[1:])

        def seed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
            return generated.seed_of(rollout(), contract.name, args[int(self.is_method) :], kwargs) if draws else None

        if contract.is_async:

            async def acalled(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await sandbox.acall(
                        text, contract.name, given(args), kwargs, seed=seed(args, kwargs), **fixed
                    )
                except CodeError as error:
                    raise generated.placed(error, text, contract.name) from error.__cause__

            return functools.wraps(_plain(contract))(acalled)

        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                return sandbox.call(text, contract.name, given(args), kwargs, seed=seed(args, kwargs), **fixed)
            except CodeError as error:
                raise generated.placed(error, text, contract.name) from error.__cause__

        return functools.wraps(_plain(contract))(called)

    def __deepcopy__(self, _: Any) -> Code:
        return self  # a copied Module has Parameters of its own for the same functions

    def __reduce__(self) -> tuple[Any, ...]:
        fn: Any = self._contract.fn
        return _code_at, (fn.__module__, fn.__qualname__)

    def __repr__(self) -> str:
        return f"<code of {self.name!r} in {class_of(self._sandbox).__name__}>"


def _code_at(module: str, name: str) -> Code:
    """The Code of an op by where it is defined, as a pickle names it."""
    return code_of(attrgetter(name)(import_module(module)))


def trainable(
    fn: Callable[..., Any], *, name: str | None = None, sandbox: str | Sandbox = "monty", uses: Uses = (),
    source: str | None = None,
) -> Callable[..., Any]:  # fmt: skip
    """The function that an op calls in place of `fn`: it runs `fn`, or in a sandbox the source in force.

    What generated code is given are copies, so what it changes in an argument is lost, and whatever it raises is a
    `CodeError`: the workflow's own `except ValueError` does not catch it. A method sees the attributes of its object that it
    reads, as plain data; it cannot set them or call other methods. Generators and lambdas cannot be trained, and only an
    `async def` may use async functions. In `sandbox="trusted"` the first and the third do not hold.

    Args:
        fn: A function or method made by `def` or `async def`, with or without decorators.
        name: The Parameter's name; the function's own by default.
        sandbox: Where generated code runs.
        uses: The functions and ops of the host that generated code may call, by their names or by those given.
        source: The text of `fn`, where Python does not know it.

    Raises:
        TraceError: its source cannot be rewritten, the sandbox cannot run here, or its annotations, its defaults or a
            function in `uses` name values that cannot cross.
    """
    contract = capture(fn, source)
    frame = _caller()
    decoration.refuse_hidden(contract, frame)
    chosen = sandbox_of(sandbox)
    if not isinstance(sandbox, str) or sandbox != "trusted":
        decoration.refuse_obstacles(contract, chosen)
    else:
        chosen = decoration.trusting(contract)
    code = Code(
        fn, contract, name or contract.name, sandbox=chosen, uses=decoration.by_name(uses, contract, chosen),
        inner=decoration.inner(contract, frame),
    )  # fmt: skip
    if contract.is_async:

        @functools.wraps(fn)
        async def acoded(*args: Any, **kwargs: Any) -> Any:
            return await code.run(args, kwargs)

        coded: Any = acoded
    else:

        @functools.wraps(fn)
        def scoded(*args: Any, **kwargs: Any) -> Any:
            return code.run(args, kwargs)

        coded = scoded
    coded.__trace_code__ = code
    return coded


def code_of(fn: Any) -> Code:
    """The Code of a trainable op.

    Raises:
        TraceError: it is none.
    """
    found = getattr(fn, "__trace_code__", None)
    if found is None:
        raise TraceError(f"{fn!r} is no trainable op; decorate it with @trace(trainable=True)")
    return found


def parameter_of(fn: Callable[..., Any]) -> Parameter[str]:
    """The Parameter that holds the source of a trainable op; of a Module's method, that of the object it is bound to.

    Raises:
        TraceError: it is no trainable op.
    """
    owner = getattr(fn, "__self__", None)
    return code_of(fn).held_by(() if owner is None else (owner,))


def listed(given: Any) -> list[Any]:
    """What `parameters=` takes as a list of Parameters: a trainable op counts as the Parameter of its source.

    Args:
        given: A Module, a mapping or a sequence; items that are neither stay for the caller to refuse.
    """
    if is_a(given, Module):
        return given.parameters()
    items: list[Any] = list(given.values() if is_a(given, Mapping) else given)
    return [parameter_of(item) if getattr(item, "__trace_code__", None) is not None else item for item in items]


def _plain(contract: Contract) -> Any:
    return contract.fn if contract.fn is not None else contract


def _is_method(fn: Any) -> bool:
    """Whether the first argument is the object or class that the function is called on."""
    if fn is None:
        return False
    scope = getattr(fn, "__qualname__", "").rpartition(".")[0]
    names = fn.__code__.co_varnames[: fn.__code__.co_argcount]
    return bool(scope and not scope.endswith("<locals>") and names and names[0] in ("self", "cls"))


def _caller() -> Any:
    """The frame of the code that decorates."""
    ours = f"{Path(__file__).parents[1]}{os.sep}"
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    return frame
