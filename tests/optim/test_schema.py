"""The schema of an answer: the subset that every provider takes."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from trace_opt.core.parameter import Demonstrations, Parameter
from trace_opt.optim.schema import admits_null, answerable, labels, schema_of, to_json, type_text


class Step(BaseModel):
    title: str = "first"  # a field of that name is no title of pydantic's
    tools: list[Literal["search", "code"]] = []
    next: Step | None = None


class Plan(BaseModel):
    """A plan."""

    steps: list[Step]
    width: Annotated[int, Field(ge=1, le=4)] = 1


class Mode(enum.Enum):
    FAST = "fast"
    SURE = "sure"


def value_schema(parameter: Parameter[Any]) -> Any:
    schema = schema_of([parameter])
    assert schema is not None
    return schema["properties"]["values"]["properties"][parameter.name]


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        yield schema
        for item in schema.values():
            yield from nodes(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from nodes(item)


def test_an_answer_has_reasoning_and_a_nullable_value_for_each_name() -> None:
    schema = schema_of([Parameter("a", name="style"), Parameter(3, name="k")])
    assert schema == {
        "type": "object",
        "properties": {
            "reasoning": {"type": "string"},
            "values": {
                "type": "object",
                "properties": {
                    "style": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "k": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                },
                "required": ["style", "k"],
                "additionalProperties": False,
            },
        },
        "required": ["reasoning", "values"],
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "parameter",
    [
        Parameter(Plan(steps=[Step()]), name="plan", type=Plan),
        Parameter((1, "a"), name="pair", type=tuple[int, str]),
        Parameter({1}, name="numbers", type=set[int]),
        Parameter(Mode.FAST, name="mode", type=Mode),
        Parameter(5, name="bounded", type=Annotated[int, Field(ge=1, le=9)]),
        Parameter("a", name="optional", type=str | None),
    ],
    ids=lambda parameter: parameter.name,
)
def test_only_what_every_provider_takes_is_sent(parameter: Parameter[Any]) -> None:
    schema = schema_of([parameter, Parameter("a", name="other")])
    allowed = {
        "type",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "anyOf",
        "enum",
        "$ref",
        "$defs",
        "description",
    }
    for node in nodes(schema):
        if "type" not in node and not ({"anyOf", "$ref", "enum"} & set(node)):
            continue  # a mapping of names
        if set(node) - allowed:
            assert all(isinstance(value, dict) for value in node.values())  # a mapping of names as well
            continue
        if node.get("type") == "object":
            assert node["required"] == list(node["properties"])
            assert node["additionalProperties"] is False


def test_definitions_are_kept_at_the_root_and_apart_for_each_parameter() -> None:
    schema: Any = schema_of([Parameter(Plan(steps=[Step()]), name=name, type=Plan) for name in ("a", "b")])
    assert set(schema["$defs"]) == {"p0_Step", "p1_Step"}
    assert schema["$defs"]["p0_Step"]["required"] == ["title", "tools", "next"]


@pytest.mark.parametrize("kind", [dict[str, int], Any, list[Any]], ids=["open dict", "anything", "list of anything"])
def test_a_type_the_subset_cannot_say_sends_no_schema(kind: Any) -> None:
    value: Any = [] if kind == list[Any] else {}
    assert schema_of([Parameter("a", name="style"), Parameter(value, name="free", type=kind)]) is None


def test_choices_are_an_enum_and_other_objects_stand_by_their_repr() -> None:
    assert value_schema(Parameter("a", name="p", choices=["a", "b"]))["anyOf"][0] == {
        "type": "string",
        "enum": ["a", "b"],
    }
    pairs = Parameter((1, 2), name="p", choices=[(1, 2), (3, 4)])
    assert [label for label, _ in labels(pairs)] == ["(1, 2)", "(3, 4)"]
    assert to_json(pairs, (3, 4)) == "(3, 4)"


def test_two_choices_of_one_repr_keep_labels_of_their_own() -> None:
    named = labels(Parameter("(1, 2)", name="p", choices=["(1, 2)", (1, 2)]))
    assert len({label for label, _ in named}) == 2


@pytest.mark.parametrize(
    ("parameter", "text"),
    [
        (Parameter("a", name="p"), "text"),
        (Parameter(3, name="p"), "whole number"),
        (Parameter(0.5, name="p"), "number"),
        (Parameter(False, name="p"), "true or false"),
        (Parameter("a", name="p", choices=["a", "b"]), 'one of "a", "b"'),
        (Parameter(5, name="p", type=Annotated[int, Field(ge=1, le=9)]), "whole number, at least 1, at most 9"),
        (Parameter("ab", name="p", type=Annotated[str, Field(max_length=80)]), "text, at most 80 characters"),
        (Parameter(Mode.FAST, name="p", type=Mode), 'one of "fast", "sure"'),
        (Parameter(["a"], name="p", type=list[str]), 'JSON that fits the schema {"items": {"type": "string"}, "type": "array"}'),
    ],
    ids=["text", "integer", "float", "boolean", "choice", "bounds", "length", "enum", "list"],
)  # fmt: skip
def test_what_is_allowed_is_said_in_words(parameter: Parameter[Any], text: str) -> None:
    assert type_text(parameter) == text


def test_a_schema_in_words_keeps_a_field_that_is_called_title() -> None:
    assert '"title": {"default": "first", "type": "string"}' in type_text(
        Parameter(Plan(steps=[]), name="p", type=Plan)
    )


def test_null_is_a_value_only_where_the_type_or_the_choices_take_it() -> None:
    assert admits_null(Parameter("a", name="p", type=str | None))
    assert admits_null(Parameter(None, name="p", choices=[None, 1]))
    assert not admits_null(Parameter("a", name="p"))
    assert not admits_null(Parameter(["a"], name="p", type=list[str]))


class Opaque:
    pass


def test_tensors_demonstrations_and_opaque_objects_are_not_for_language_models() -> None:
    import torch

    parameters = [
        Parameter(torch.zeros(2), name="p"), Parameter(Demonstrations(2), name="p"), Parameter(Opaque(), name="p"),
    ]  # fmt: skip
    assert not any(map(answerable, parameters))
