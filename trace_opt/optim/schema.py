"""The JSON schema of an answer, and how one parameter's value stands in it.

Only the subset that every provider takes is sent: all fields required, null for "leave it", no further fields, no
bounds. What the subset cannot say (bounds, lengths, patterns) is in the prompt and is checked on the reply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.parameter import same
from trace_opt.optim.functions import TYPE_TEXT
from trace_opt.optim.text import one_line

if TYPE_CHECKING:
    from trace_opt.core.parameter import Parameter

Schema = dict[str, Any]

REASONING, VALUES = "reasoning", "values"
"""The two fields of an answer."""

_SCALARS = (str, bool, int, float, type(None))


class _NotInSubsetError(Exception):
    """A type that the common subset cannot say."""


def answerable(parameter: Parameter[Any]) -> bool:
    """Whether a language model can give a value for it as JSON: anything but tensors, adapters and demonstrations."""
    if parameter.kind in ("tensor", "adapter", "demonstrations"):
        return False
    if parameter.kind != "structured":
        return True
    from pydantic.errors import PydanticUserError

    try:
        parameter.adapter.json_schema()
    except (PydanticUserError, TypeError, ValueError):
        return False
    return True


def schema_of(parameters: Sequence[Parameter[Any]]) -> Schema | None:
    """The schema of an answer with values for `parameters`.

    Returns:
        None where the type of one of them cannot be said in the subset (an open `dict`); the prompt says it alone then.
    """
    definitions: Schema = {}
    properties: Schema = {}
    for i, parameter in enumerate(parameters):
        try:
            properties[parameter.name] = _nullable(_value_schema(parameter, f"p{i}_", definitions))
        except _NotInSubsetError:
            return None
    made = _object({REASONING: {"type": "string"}, VALUES: _object(properties)})
    return {**made, "$defs": definitions} if definitions else made


def labels(parameter: Parameter[Any]) -> list[tuple[Any, Any]]:
    """The choices as an answer names them: a scalar by itself, anything else by its repr."""
    named: list[tuple[Any, Any]] = []
    for choice in parameter.choices or ():
        label = choice if type(choice) in _SCALARS else repr(choice)
        while any(same(label, taken) for taken, _ in named):
            label = f"{label} "  # two choices of one repr: told apart, never taken for each other
        named.append((label, choice))
    return named


def admits_null(parameter: Parameter[Any]) -> bool:
    """Whether null is a value of its own here and so cannot mean "leave it"."""
    if parameter.choices is not None:
        return any(choice is None for choice in parameter.choices)
    if parameter.kind != "structured":
        return False
    from pydantic import ValidationError

    try:
        parameter.adapter.validate_json("null", strict=True)
    except ValidationError:
        return False
    return True


def to_json(parameter: Parameter[Any], value: Any) -> Any:
    """A value as an answer would give it."""
    if parameter.choices is not None:
        return next((label for label, choice in labels(parameter) if same(choice, value)), repr(value))
    if isinstance(value, bytes):  # those that are no UTF-8 would be refused
        return value.decode(errors="backslashreplace")
    if parameter.kind == "structured":
        return parameter.adapter.dump_python(value, mode="json")
    return value


def type_text(parameter: Parameter[Any]) -> str:
    """What values are allowed, for a reader: `text`, `whole number, at least 1`, or a compact JSON schema."""
    if parameter.choices is not None:
        return "one of " + ", ".join(json.dumps(label, ensure_ascii=False) for label, _ in labels(parameter))
    if parameter.code is not None:
        return TYPE_TEXT
    if parameter.kind == "text":
        return "text" if parameter.placeholders is None else f"text, {parameter.placeholders.text}"
    if parameter.kind == "boolean":
        return "true or false"
    if parameter.kind == "number":
        return _NUMBERS["integer" if parameter.annotation is int else "number"]
    if field_lines(parameter):
        return "JSON object with exactly the fields below"
    schema = _without_titles(parameter.adapter.json_schema())
    words = _scalar_words(schema)
    return words or f"JSON that fits the schema {json.dumps(schema, ensure_ascii=False, separators=(', ', ': '))}"


_NUMBERS = {"integer": "whole number", "number": "number"}
_BOUNDS = {
    "minimum": "at least {}", "exclusiveMinimum": "greater than {}", "maximum": "at most {}",
    "exclusiveMaximum": "less than {}", "multipleOf": "a multiple of {}", "minLength": "at least {} characters",
    "maxLength": "at most {} characters", "pattern": "matching the pattern {!r}", "format": "in {} format",
}  # fmt: skip
_KINDS = {**_NUMBERS, "string": "text", "boolean": "true or false"}


def field_lines(parameter: Parameter[Any]) -> list[str]:
    """What is allowed in each field of a structured value, where words say all of it; else nothing."""
    if parameter.kind != "structured":
        return []
    schema = _without_titles(parameter.adapter.json_schema())
    fields = cast("dict[str, Any]", schema.get("properties", {})) if schema.get("type") == "object" else {}
    lines: list[str] = []
    for name, inner in fields.items():
        words = _scalar_words({key: said for key, said in inner.items() if key != "default"})
        if not words and inner.get("type") == "array" and isinstance(inner.get("items"), dict):
            each = _scalar_words(inner["items"])
            words = f"list, each {each}" if each and set(inner) <= {"type", "items", "default", "description"} else ""
        if not words:
            return []
        lines.append(f"{name}: {words}" + (f" ({one_line(inner['description'])})" if "description" in inner else ""))
    return lines


def _scalar_words(schema: Mapping[str, Any]) -> str:
    """A scalar's schema in words, or "" for anything else."""
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(item, ensure_ascii=False) for item in schema["enum"])
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in _KINDS or set(schema) - {"type", "description", *_BOUNDS}:
        return ""
    return ", ".join([_KINDS[kind], *(text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema)])


def _without_titles(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_titles(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    # pydantic's titles are made from names; a field that is called title holds a schema, not a text
    entries = cast("dict[str, Any]", node)
    return {key: _without_titles(item) for key, item in entries.items() if key != "title" or not isinstance(item, str)}


def _value_schema(parameter: Parameter[Any], prefix: str, definitions: Schema) -> Schema:
    if parameter.choices is not None:
        return _enum([label for label, _ in labels(parameter)])
    full = parameter.adapter.json_schema()
    for name, inner in full.get("$defs", {}).items():
        definitions[prefix + name] = _subset(inner, prefix)
    return _subset(full, prefix)


def _subset(node: Any, prefix: str) -> Schema:
    """A schema in the common subset; bounds, titles and defaults are left out.

    Raises:
        _NotInSubsetError: it is an open object, or says nothing at all.
    """
    if not isinstance(node, dict):
        raise _NotInSubsetError
    schema = cast("Schema", node)
    if "$ref" in schema:
        return {"$ref": "#/$defs/" + prefix + str(schema["$ref"]).rpartition("/")[2]}
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return {"anyOf": [_subset(item, prefix) for item in schema[key]]}
    if "allOf" in schema and len(schema["allOf"]) == 1:
        return _subset(schema["allOf"][0], prefix)
    if "const" in schema:
        return _enum([schema["const"]])
    if "enum" in schema:
        return _enum(schema["enum"])
    return _typed(schema, prefix)


def _typed(schema: Schema, prefix: str) -> Schema:
    kind = schema.get("type")
    described = {"description": schema["description"]} if "description" in schema else {}
    if kind in ("string", "integer", "number", "boolean", "null"):
        return {"type": kind, **described}
    if kind == "array":
        places = schema.get("prefixItems")
        if places is not None:  # a tuple: what may stand at which place is checked on the reply
            kinds = [_subset(item, prefix) for item in places]
            distinct = [item for i, item in enumerate(kinds) if item not in kinds[:i]]
            return {"type": "array", "items": distinct[0] if len(distinct) == 1 else {"anyOf": distinct}, **described}
        return {"type": "array", "items": _subset(schema.get("items"), prefix), **described}
    if kind == "object" and "properties" in schema and not schema.get("additionalProperties"):
        fields = cast("Schema", schema["properties"])
        return {**_object({name: _subset(inner, prefix) for name, inner in fields.items()}), **described}
    raise _NotInSubsetError


def _object(properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _enum(items: Sequence[Any]) -> Schema:
    kinds: set[Any] = {type(item) for item in items}
    names: dict[Any, str] = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    if len(kinds) == 1 and (kind := names.get(next(iter(kinds)))) is not None:
        return {"type": kind, "enum": list(items)}
    return {"enum": list(items)}


def _nullable(schema: Schema) -> Schema:
    if schema.get("type") == "null" or {"type": "null"} in schema.get("anyOf", []):
        return schema
    return {"anyOf": [*schema["anyOf"], {"type": "null"}] if set(schema) == {"anyOf"} else [schema, {"type": "null"}]}
