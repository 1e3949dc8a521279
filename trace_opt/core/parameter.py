"""A root value that optimizers may change.

A Parameter holds one value and what is allowed in its place. Reading `.value` is what ties it to a recording: in the
workflow it gives a recorded result, in an op's body the plain value with the read logged, elsewhere the plain value.
A running candidate's values are read from the context first, so a search never writes to a Parameter.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NoReturn, TypeVar, cast

from trace_opt.core.adapter import Adapter
from trace_opt.core.constraint import Constraint, fault_of
from trace_opt.core.context import FRAME, STATE, Process
from trace_opt.core.node import class_of
from trace_opt.errors import CodeError, TraceError

if TYPE_CHECKING:
    import torch
    from pydantic import TypeAdapter

    from trace_opt.core.template import Placeholders
    from trace_opt.core.trainable import Code

T = TypeVar("T")

Kind = Literal["text", "code", "number", "boolean", "tensor", "choice", "demonstrations", "adapter", "structured"]


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Worked examples that a workflow shows to a model.

    Args:
        k: How many examples may be shown at most.
        examples: The examples shown, in order; each is what the training set holds (often a dict).
    """

    k: int = 4
    examples: tuple[Any, ...] = field(default=())

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        if self.k < 0 or len(self.examples) > self.k:
            raise ValueError(f"Demonstrations(k={self.k}) got {len(self.examples)} examples; pass at most k")

    def __iter__(self) -> Iterator[Any]:
        return iter(self.examples)

    def __len__(self) -> int:
        return len(self.examples)


class Parameter(Generic[T]):
    """A value that optimizers may change.

    Args:
        value: The starting value: text, a number, a boolean, a torch tensor, `Demonstrations`, an `Adapter`, or
            anything that `type` describes.
        name: Unique within a workflow. May be left out only for an attribute of a `Module`, which takes the
            attribute's name.
        description: What it is for, in words; language-model optimizers read it.
        type: Any annotation that pydantic understands; the value's own class by default.
        constraint: What a tensor must satisfy (`Box`, `Ball`, `Simplex`).
        choices: The only values allowed.
        suggestions: Texts worth trying; others are allowed too.
        frozen: Whether optimizers must leave it alone.
        placeholders: Of a prompt template, the names in braces that every value must keep; True for those that stand in
            the starting value.

    Raises:
        ValueError: the value does not fit `type`, `choices` or `placeholders`.
        TraceError: it is created while a workflow is being recorded.

    Attributes:
        code: Of a trainable op's source, the function that it is (core/trainable.py); else None.
    """

    __slots__ = (
        "__weakref__", "_adapter", "_name", "_value", "choices", "code", "constraint", "description", "frozen", "grad",
        "owner", "placeholders", "suggestions", "type",
    )  # fmt: skip

    def __init__(
        self,
        value: T,
        *,
        name: str | None = None,
        description: str = "",
        type: Any = None,  # the field's word for it
        constraint: Constraint | None = None,
        choices: Sequence[T] | None = None,
        suggestions: Sequence[T] | None = None,
        frozen: bool = False,
        placeholders: Sequence[str] | bool = (),
    ) -> None:
        if FRAME.get() is not None:
            raise TraceError(
                f"parameter {name!r} is created inside a workflow that is being recorded; create it once, outside the "
                "workflow, so that every rollout shares it"
            )
        Process.unwraps = True
        self._name = name
        self.owner: Any = None  # the Module whose attribute it is (core/module.py)
        self.description = description
        self.type = type
        self.constraint = constraint
        self.choices = None if choices is None else tuple(choices)
        self.suggestions = None if suggestions is None else tuple(suggestions)
        self.frozen = frozen
        self.code: Code | None = None
        self.placeholders: Placeholders | None = None
        self.grad: torch.Tensor | None = None
        self._adapter: TypeAdapter[Any] | None = None
        if self.choices is not None and not self.choices:
            raise ValueError(f"parameter {name!r} has an empty list of choices; give at least one")
        if placeholders:
            from trace_opt.core.template import placeholders_of

            self.placeholders = placeholders_of(value, placeholders, name)
        self._value: T = self.check(value)
        for suggestion in self.suggestions or ():
            self.check(suggestion)

    @property
    def name(self) -> str:
        """The full name: the path of attributes below the outermost Module, or the name given."""
        if self.owner is not None:
            return self.owner.full_name(self)
        if self._name is None:
            raise TraceError(
                "a parameter has no name; pass name=..., or make it an attribute of a Module, which names it"
            )
        return self._name

    @property
    def own_name(self) -> str | None:
        """The name given at creation, or None for one that is named by its Module."""
        return self._name

    @property
    def value(self) -> T:
        """The value in force: the running candidate's, else the parameter's own (see the module's docstring)."""
        frame = FRAME.get()
        if frame is not None and frame.graph.open:
            return frame.read(self)
        state = STATE.get()
        if state is None:
            for note in Process.outside:
                note(self)
            return self._value
        return state.values.get(self.name, self._value) if state.values else self._value

    @value.setter
    def value(self, value: T) -> None:
        self._value = self.check(value)

    @property
    def initial(self) -> T:
        """The parameter's own value, whatever candidate is running."""
        return self._value

    @property
    def kind(self) -> Kind:
        """What sort of value it holds; optimizers decide by it what they handle."""
        if self.choices is not None:
            return "choice"
        if self.code is not None:
            return "code"
        value = self._value
        if isinstance(value, Demonstrations):
            return "demonstrations"
        if isinstance(value, Adapter):
            return "adapter"
        if is_tensor(value):
            return "tensor"
        if self.type in (None, str) and isinstance(value, str):
            return "text"
        if self.type in (None, bool) and isinstance(value, bool):
            return "boolean"
        if self.type in (None, int, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
            return "number"
        return "structured"

    @property
    def annotation(self) -> Any:
        """The annotation that values are validated against: `type`, or the class of the value."""
        return self.type if self.type is not None else type(self._value)

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """The pydantic validator of `annotation`, made when first needed."""
        if self._adapter is None:
            from pydantic import TypeAdapter

            self._adapter = TypeAdapter(self.annotation)
        return self._adapter

    def check(self, value: Any) -> T:
        """Return `value` if it is allowed here, without ever converting it; of code, the text that is kept.

        Raises:
            ValueError: one sentence that names the parameter, the value and what is allowed.
        """
        name = self._name if self.owner is None else self.name
        if self.choices is not None:
            if not any(same(value, choice) for choice in self.choices):
                raise ValueError(f"parameter {name!r} got {short(value)}; choose one of {list(self.choices)!r}")
            return value
        if self.code is not None:
            return cast("T", self._check_code(name, self.code, value))
        if self.placeholders is not None and isinstance(value, str):
            fault = self.placeholders.fault(value)
            if fault:
                raise ValueError(f"parameter {name!r} got {short(value)}, which {fault}")
        current = getattr(self, "_value", value)
        if isinstance(current, (Demonstrations, Adapter)) or is_tensor(current):
            return cast("T", self._check_special(name, current, value))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"parameter {name!r} got {value!r}; give a finite number")
        if self.type is None:
            expected = class_of(current)
            fits = isinstance(value, expected) and (expected is bool or not isinstance(value, bool))
            if not fits and not (expected is float and type(value) is int):
                raise ValueError(
                    f"parameter {name!r} got {short(value)} of type {type(value).__name__!r}; give a value of type "
                    f"{expected.__name__!r}, or declare type= when the parameter is made"
                )
            return cast("T", value)
        return self._check_annotated(name, value)

    def _check_code(self, name: str | None, code: Code, value: Any) -> str:
        try:
            return code.check(value)
        except CodeError as error:
            raise ValueError(f"parameter {name!r} got code that cannot be used: {error}") from error

    def _check_special(self, name: str | None, current: Any, value: Any) -> Any:
        if isinstance(current, Demonstrations):
            if not isinstance(value, Demonstrations):
                raise ValueError(f"parameter {name!r} got {short(value)}; give a Demonstrations(...)")  # noqa: TRY004 # a value refused, like any other
            return value
        if isinstance(current, Adapter):
            if not isinstance(value, Adapter):
                raise ValueError(f"parameter {name!r} got {short(value)}; give an Adapter")  # noqa: TRY004 # a value refused, like any other
            return value
        if not is_tensor(value):
            raise ValueError(f"parameter {name!r} got {short(value)}; give a tensor of shape {tuple(current.shape)!r}")
        fault = fault_of(value, current, self.constraint)
        if fault is not None:
            raise ValueError(f"parameter {name!r} got {short(value)}; {fault}")
        return value

    def _check_annotated(self, name: str | None, value: Any) -> T:
        from pydantic import ValidationError

        try:
            validated: Any = self.adapter.validate_python(value, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            where = f" at {place!r}" if place else ""
            raise ValueError(
                f"parameter {name!r} got {short(value)}, which does not fit its type{where}: {first['msg']}"
            ) from None
        made = type(validated).__name__
        if type(value).__name__ == "dict" != made:  # strict mode makes a model of a plain dict
            raise ValueError(f"parameter {name!r} got {short(value)}, a plain dict; give a {made}(...)")
        return value

    def __repr__(self) -> str:
        flags = ", frozen" if self.frozen else ""
        try:
            name = self.name
        except TraceError:
            name = None
        return f"Parameter({short(self._value)}, name={name!r}{flags})"

    def _refuse(self, *_: object) -> NoReturn:
        raise TraceError(f"{self!r} has no operators and no text form; use .value")

    __str__ = _refuse
    __format__ = _refuse
    __bool__ = __len__ = __iter__ = __contains__ = __getitem__ = __call__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __mod__ = __rmod__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = _refuse


def is_tensor(value: object) -> bool:
    """Whether `value` is a torch tensor, without importing torch: where torch is not loaded, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def same(left: object, right: object) -> bool:
    """Equal in value and in type, so that True is not 1 and 1 is not 1.0."""
    return type(left) is type(right) and bool(left == right)


def short(value: object, width: int = 80) -> str:
    """The repr of a value, cut in the middle to `width` characters."""
    text = repr(value)
    if len(text) <= width:
        return text
    half = (width - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def by_name(parameters: Iterable[Parameter[Any]]) -> dict[str, Parameter[Any]]:
    """Parameters by full name.

    Raises:
        TraceError: two of them have one name.
    """
    found: dict[str, Parameter[Any]] = {}
    for parameter in parameters:
        other = found.setdefault(parameter.name, parameter)
        if other is not parameter:
            raise TraceError(f"two parameters are named {parameter.name!r}; give each a name of its own")
    return found
