"""Parameter values as people read them, as JSON, and as Python source."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.adapter import Adapter
from trace_opt.core.codec import Unrestored, encode
from trace_opt.core.parameter import Demonstrations, is_tensor
from trace_opt.errors import StoreError

if TYPE_CHECKING:
    import torch


def encoded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, JSON-able and exact; what `load_values` and `codec.decode` take back."""
    return {name: encode(value) for name, value in values.items()}


def value_text(value: Any) -> str:
    """One value as text: a text as it is, demonstrations one by one, anything else as JSON or by its repr."""
    if isinstance(value, str):
        return value
    if isinstance(value, Demonstrations):
        return (
            "\n".join(f"{number}. {_demonstration(item)}" for number, item in enumerate(value.examples, 1)) or "(none)"
        )
    if isinstance(value, Adapter):
        return str(value)
    if isinstance(value, (dict, list)):
        try:
            return json.dumps(value, indent=2, ensure_ascii=False)
        except (TypeError, ValueError):
            return repr(cast("object", value))
    return repr(value)


def _demonstration(item: Any) -> str:
    if isinstance(item, Mapping):
        pairs = cast("Mapping[Any, Any]", item).items()
        return "\n   ".join(f"{name}: {value if isinstance(value, str) else repr(value)}" for name, value in pairs)
    return item if isinstance(item, str) else repr(item)


def values_text(values: Mapping[str, Any]) -> str:
    """All values as text, each under its name."""
    return "\n\n".join(f"# {name}\n{value_text(value)}" for name, value in values.items()) + "\n"


def values_lines(values: Mapping[str, Any]) -> list[str]:
    """All values for a screen: short ones beside their name, others indented below it."""
    lines: list[str] = []
    for name, value in values.items():
        text = value_text(value)
        if "\n" not in text and len(text) + len(name) <= 90:
            lines.append(f"  {name}: {text if not isinstance(value, str) else repr(value)}")
        else:
            lines.append(f"  {name}:")
            lines.extend(f"    {line}" for line in text.split("\n"))
    return lines


def python_module(values: Mapping[str, Any], *, title: str) -> str:
    """A Python module with the values in place.

    Args:
        values: By full parameter name.
        title: What the module's docstring says.

    Raises:
        StoreError: a value was not kept whole.
    """
    body = "".join(f"    {name!r}: {literal(value, 4)},\n" for name, value in values.items())
    made = ("Adapter", "Demonstrations")
    used = [name for name in (*made, "load_values") if f"{name}(" in body or name == "load_values"]
    heavy = "import torch\n" if "torch.tensor(" in body else ""
    decoding = "from base64 import b64decode\n" if "b64decode(" in body else ""
    return (
        f'"""{_docstring(title)}"""\n\n{decoding}from typing import Any\n\n{heavy}from trace_opt import {", ".join(used)}\n\n'
        f"VALUES: dict[str, Any] = {{\n{body}}}\n\n\n"
        "def apply(parameters: Any) -> None:\n"
        '    """Write the values into Parameters, all of them or none."""\n'
        "    load_values(parameters, VALUES)\n"
    )


def _docstring(text: str) -> str:
    return repr(" ".join(text.split()))[1:-1].replace('"', "'")


def literal(value: Any, indent: int = 0) -> str:
    """A value as a Python expression that gives it back exactly.

    Args:
        value: What `codec.decode` can give.
        indent: Spaces before the line it stands on.

    Raises:
        StoreError: it was not kept whole.
    """
    if isinstance(value, str):
        return _text(value, indent)
    if isinstance(value, Demonstrations):
        items = "".join(f"{' ' * (indent + 4)}{literal(item, indent + 4)},\n" for item in value.examples)
        inner = f"(\n{items}{' ' * indent})" if items else "()"
        return f"Demonstrations({value.k}, {inner})"
    if isinstance(value, Adapter):
        if not value.whole:
            raise StoreError(f"{value!r} was kept by its hash only; export the candidate that holds it")
        return f'Adapter(b64decode("{b64encode(value.data).decode()}"))' if value else "Adapter()"
    if is_tensor(value):
        return _tensor(cast("torch.Tensor", value))
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, complex):
        return f"complex({literal(value.real)}, {literal(value.imag)})"
    if isinstance(value, Unrestored):
        raise StoreError(f"a value of class {value.kind!r} was kept by its repr only; export it with --format text")
    return _container(value, indent)


def _container(value: Any, indent: int) -> str:
    def inner(item: Any) -> str:
        return literal(item, indent)

    makers: dict[type, Callable[[Any], str]] = {
        list: lambda v: f"[{', '.join(map(inner, v))}]",
        tuple: lambda v: f"({', '.join(map(inner, v))}{',' if len(v) == 1 else ''})",
        set: lambda v: f"{{{', '.join(map(inner, v))}}}" if v else "set()",
        frozenset: lambda v: f"frozenset([{', '.join(map(inner, v))}])",
        dict: lambda v: f"{{{', '.join(f'{inner(key)}: {inner(item)}' for key, item in v.items())}}}",
    }
    return makers.get(value.__class__, repr)(value)


def _text(text: str, indent: int) -> str:
    """A text on one line, or line by line where it has several."""
    lines = text.splitlines(keepends=True)
    if len(lines) < 2 and len(text) <= 100:
        return repr(text)
    pieces = [line[i : i + 100] for line in lines for i in range(0, len(line), 100)]
    return "(\n" + "".join(f"{' ' * (indent + 4)}{piece!r}\n" for piece in pieces) + f"{' ' * indent})"


def _tensor(value: torch.Tensor) -> str:
    dtype = str(value.dtype)
    data = value.detach().cpu()
    items = literal(cast("Any", data).tolist())
    shape = f".reshape({tuple(data.shape)!r})" if data.numel() == 0 else ""
    return f"torch.tensor({items}, dtype={dtype}){shape}"
