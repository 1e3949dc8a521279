"""What may cross into a sandbox and out of it, and whether what came out is what the annotation promised.

Values cross as data: numbers, text, bytes, dates, lists, tuples, sets, dicts, and the fields of dataclasses and pydantic
models, which generated code sees as plain dataclasses of the same names. The check is made on this side, strictly:
nothing is converted to fit.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from trace_opt.core.node import class_of
from trace_opt.core.sandbox.wire import DEPTH, Instance, Refused

ANY: Any = inspect.Signature.empty
_ATOMS = (str, int, float, bool, bytes, complex, type(None))
_SEQUENCES: tuple[Any, ...] = (list, tuple, set, frozenset)
_LEAVES = frozenset({*_ATOMS, list, tuple, set, frozenset, dict, object})
_DATED = ("datetime", "date", "time", "timedelta", "Decimal")


def brief(value: object) -> str:
    """What a value is, without calling anything that its class defines."""
    kind = class_of(value)
    if kind in (int, float, bool, str, bytes) and sys.getsizeof(value) < 10_000:
        text = repr(value)
        return text if len(text) <= 60 else f"a {kind.__name__!r} of {len(text)} characters"
    name = typing.cast("Instance", value).name if kind is Instance else kind.__name__
    return f"a {name!r}"


def shapes(annotation: Any) -> dict[str, type]:
    """The dataclasses and pydantic models in an annotation, with those in their fields, by name."""
    found: dict[str, type] = {}
    _collect(annotation, found)
    return found


def _collect(annotation: Any, found: dict[str, type]) -> None:
    for part in typing.get_args(annotation):
        _collect(part, found)
    if inspect.isclass(annotation) and is_shape(annotation) and annotation.__name__ not in found:
        found[annotation.__name__] = annotation
        for hint in hints(annotation).values():
            _collect(hint, found)


def is_shape(kind: Any) -> bool:
    """Whether a class is a dataclass or a pydantic model."""
    return inspect.isclass(kind) and (dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields"))


@functools.lru_cache(maxsize=256)
def hints(kind: type) -> dict[str, Any]:
    """The annotations of a class's fields, in order; empty ones where they cannot be resolved."""
    names = field_names(kind)
    try:
        resolved = typing.get_type_hints(kind)
    except (NameError, TypeError, AttributeError):
        resolved = {}
    return {name: resolved.get(name, ANY) for name in names}


def field_names(kind: Any) -> tuple[str, ...]:
    """The names of the fields of a dataclass or pydantic model."""
    if dataclasses.is_dataclass(kind):
        return tuple(f.name for f in dataclasses.fields(kind))
    return tuple(kind.model_fields)


def definitions(classes: Mapping[str, type]) -> str:
    """Plain dataclasses with the same names and fields, as source that every sandbox understands."""
    if not classes:
        return ""
    blocks = ["from dataclasses import dataclass, field"]
    blocks += [_definition(name, kind) for name, kind in classes.items()]
    return "\n".join(blocks) + "\n"


@functools.lru_cache(maxsize=256)
def _definition(name: str, kind: Any) -> str:
    lines = ["@dataclass", f"class {name}:"]
    late = False  # a field with a default may stand before one without in a model, never in a dataclass
    for field in field_names(kind):
        default = _default(kind, field)
        late = late or default is not None
        lines.append(f"    {field}: object" + (f" = {default or 'None'}" if late else ""))
    return "\n".join([*lines, "    pass"] if len(lines) == 2 else lines)


def _default(kind: Any, name: str) -> str | None:
    if dataclasses.is_dataclass(kind):
        field = kind.__dataclass_fields__[name]
        value, factory = field.default, typing.cast("Any", field.default_factory)
        if factory in (list, dict, set):
            return f"field(default_factory={factory.__name__})"
        missing = value is dataclasses.MISSING and factory is dataclasses.MISSING
    else:
        field = kind.model_fields[name]
        value, factory = field.default, field.default_factory
        if factory in (list, dict, set):
            return f"field(default_factory={factory.__name__})"
        missing = field.is_required()
    if missing:
        return None
    return repr(value) if class_of(value) in _ATOMS else "None"


def sent(value: Any, *, arrays: bool = False, classes: dict[str, type] | None = None, depth: int = 0) -> Any:
    """A value as data: instances of dataclasses and models become `Instance`, tensors arrays.

    Args:
        value: What is to cross.
        arrays: Whether numpy arrays and tensors may.
        classes: Filled with the classes met.
        depth: How deep in containers it stands.

    Raises:
        Refused: something in it cannot cross.
    """
    kind: Any = class_of(value)
    if kind in _ATOMS or (
        kind.__name__ in _DATED and kind.__module__ in ("datetime", "decimal", "_decimal", "_pydatetime")
    ):
        return value
    if depth > DEPTH:
        raise Refused(f"it is nested more than {DEPTH} deep, or holds itself", limit=True)
    if kind in _SEQUENCES:
        return kind([sent(item, arrays=arrays, classes=classes, depth=depth + 1) for item in value])
    if kind is dict:
        return {
            sent(key, arrays=arrays, classes=classes, depth=depth + 1): sent(item, arrays=arrays, classes=classes, depth=depth + 1)
            for key, item in value.items()
        }  # fmt: skip
    if is_shape(kind):
        if classes is not None:
            classes.setdefault(kind.__name__, kind)
        fields = {
            name: sent(getattr(value, name), arrays=arrays, classes=classes, depth=depth + 1)
            for name in field_names(kind)
        }
        return Instance(kind.__name__, fields)
    return _sent_array(value, kind, arrays=arrays)


def _sent_array(value: Any, kind: type, *, arrays: bool) -> Any:
    torch = sys.modules.get("torch")
    is_torch = torch is not None and issubclass(kind, torch.Tensor)
    is_array = _has_array(value)
    if arrays and (is_torch or is_array):
        return value.detach().cpu().numpy() if is_torch else value
    if is_torch or is_array:
        raise Refused(f"it holds a {kind.__name__!r}; arrays and tensors cross into a Process(arrays=True) only")
    raise Refused(f"it holds a {kind.__name__!r}, which is no plain data")


def admitted(value: Any, annotation: Any) -> Any:
    """A result as the annotated type, checked strictly.

    Raises:
        Refused: it is something else, or nothing that may cross.
    """
    if annotation is ANY or annotation is Any:
        return _restored(value, {}, 0)
    if class_of(value) is annotation and annotation in _ATOMS:
        return value
    restored = _restored(value, shapes(annotation), 0)
    if is_array_type(annotation):
        return _admitted_array(restored, annotation)
    if _has_array(restored) or annotation is object:
        return restored
    from pydantic import PydanticUserError, ValidationError

    try:
        adapter = _adapter(None if annotation is types.NoneType else annotation)
    except (PydanticUserError, NameError) as error:
        raise Refused(f"its annotation {annotation!r} cannot be checked: {str(error).splitlines()[0]}") from None
    try:
        adapter.validate_python(restored, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        raise Refused(
            f"its annotation asks for {named(annotation)}" + (f" (at {place!r}: {first['msg']})" if place else "")
        ) from None
    return restored


def named(annotation: Any) -> str:
    """An annotation as people write it."""
    return annotation.__name__ if inspect.isclass(annotation) and not typing.get_args(annotation) else str(annotation)


_adapters: dict[Any, Any] = {}


def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    try:
        found = _adapters.get(annotation)
    except TypeError:  # an annotation that cannot be hashed
        return TypeAdapter(annotation)
    if found is None:
        if len(_adapters) > 500:
            _adapters.clear()
        found = _adapters[annotation] = TypeAdapter(annotation)
    return found


def _restored(value: Any, classes: Mapping[str, type], depth: int) -> Any:
    """A value with the instances of known classes made of their fields, and nothing but data in it."""
    kind: Any = class_of(value)
    if kind in _ATOMS:
        return value
    if depth > DEPTH:
        raise Refused(f"it is nested more than {DEPTH} deep", limit=True)
    if kind in _SEQUENCES:
        return kind([_restored(item, classes, depth + 1) for item in value])
    if kind is dict:
        return {_restored(k, classes, depth + 1): _restored(v, classes, depth + 1) for k, v in value.items()}
    if kind is Instance:
        return _made(value, classes, depth)
    if kind.__module__ in ("datetime", "decimal", "_decimal", "_pydatetime") or _has_array(value):
        return value
    raise Refused(f"it holds a {kind.__name__!r}, which is no plain data")


def _made(value: Instance, classes: Mapping[str, type], depth: int) -> Any:
    kind: Any = classes.get(value.name)
    if kind is None:
        raise Refused(f"it holds a {value.name!r}, which its annotation does not name")
    fields: dict[str, Any] = {}
    for name, hint in hints(kind).items():
        if name not in value.fields:
            raise Refused(f"its {value.name!r} lacks the field {name!r}")
        try:
            given = value.fields[name]
            fields[name] = _restored(given, classes, depth + 1) if hint is ANY else admitted(given, hint)
        except Refused as refused:
            raise Refused(f"the field {name!r} of its {value.name!r} does not fit: {refused}") from None
    try:
        return kind(**fields)
    except Exception as error:  # noqa: BLE001 # the user's own class refuses the values
        raise Refused(f"{value.name!r} refused its fields: {type(error).__name__}: {str(error)[:200]}") from None


def _has_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(class_of(value), (numpy.ndarray, numpy.generic))


def is_array_type(annotation: Any) -> bool:
    """Whether an annotation is numpy's or torch's array class, by name: neither need be loaded."""
    origin = typing.get_origin(annotation) or annotation
    where = f"{getattr(origin, '__module__', '')}.{getattr(origin, '__name__', '')}"
    return where in ("numpy.ndarray", "torch.Tensor")


def _admitted_array(value: Any, annotation: Any) -> Any:
    if not _has_array(value):
        raise Refused(f"its annotation asks for {named(annotation)}")
    if getattr(annotation, "__module__", "") != "torch":
        return value
    import torch

    return torch.as_tensor(value)


def obstacle(annotation: Any, *, arrays: bool = False) -> str | None:
    """Why values of an annotation cannot cross, in words, or None where they can or nothing is known.

    Args:
        annotation: A resolved annotation.
        arrays: Whether numpy arrays and tensors may.
    """
    return next(_obstacles(annotation, frozenset(), arrays=arrays), None)


def _obstacles(annotation: Any, seen: frozenset[Any], *, arrays: bool) -> Iterator[str]:
    origin = typing.get_origin(annotation)
    if is_array_type(annotation):
        if not arrays:
            yield f"{named(annotation)} crosses into a Process(arrays=True) only"
        return
    if origin is typing.Literal or annotation is ... or annotation is ANY:
        return
    if origin is not None:
        if getattr(origin, "__name__", "") in ("Callable", "Generator", "Iterator", "AsyncIterator", "Coroutine"):
            yield f"{annotation!s} is no data; name the function in uses=[...] instead"
            return
        for part in typing.get_args(annotation):
            yield from _obstacles(part, seen, arrays=arrays)
        return
    if is_shape(annotation) and annotation not in seen:
        for hint in hints(annotation).values():
            yield from _obstacles(hint, seen | {annotation}, arrays=arrays)
    elif inspect.isclass(annotation) and not _crosses(annotation) and annotation not in seen:
        yield f"{annotation.__name__!r} is no plain data, dataclass or pydantic model"


def _crosses(kind: type) -> bool:
    if kind in _LEAVES or typing.is_typeddict(kind):
        return True
    return (
        kind.__module__ in ("datetime", "decimal", "_decimal", "collections.abc", "typing")
        and kind.__name__ != "Callable"
    )
