"""Templates: the names in braces that must stay."""

from __future__ import annotations

from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from trace_opt.core.parameter import Parameter
from trace_opt.core.template import Placeholders, named_in

names = st.lists(st.sampled_from(["a", "b", "query", "x1"]), max_size=5)


@given(names, st.text(max_size=20))
def test_names_are_found_once_each_in_their_order(found: list[str], between: str) -> None:
    plain = between.replace("{", "{{").replace("}", "}}")
    template = plain.join(["", *(f"{{{name}}}" for name in found), ""])
    assert named_in(template) == list(dict.fromkeys(found))
    template.format(**dict.fromkeys(found, 1))  # what is named is what str.format fills


@given(names, names)
def test_a_text_is_allowed_exactly_where_format_fills_it_and_nothing_is_lost(
    wanted: list[str], used: list[str]
) -> None:
    text = " ".join(f"{{{name}}}" for name in used)
    assert (Placeholders(*wanted).fault(text) == "") == (set(wanted) == set(used))


@pytest.mark.parametrize(("text", "found"), [("{a.b[0]!r:>{width}}", ["a", "width"]), ("{{a}}", []), ("", [])])
def test_only_the_name_of_a_placeholder_counts(text: str, found: list[str]) -> None:
    assert named_in(text) == found


@pytest.mark.parametrize("text", ["{", "}", "{}", "{0}", "{a", "{a!}"])
def test_what_format_could_not_fill_by_name_is_no_template(text: str) -> None:
    with pytest.raises(ValueError):
        named_in(text)


@pytest.mark.parametrize(
    "text", ["{q.__class__}", "{q[_a]}", "{q:>1000000000}", "{q:.99999}", "{q!r:a<{q}5000}", "{q:{q.__class__}}"]
)
def test_a_placeholder_may_not_look_into_objects_or_pad_without_end(text: str) -> None:
    """`str.format` would do both for whoever wrote the template."""
    assert "write the name alone" in Placeholders("q").fault(text)


def test_a_placeholder_may_be_laid_out() -> None:
    """Attributes, indices and layouts that people use stay allowed."""
    assert Placeholders("q").fault("{q.name[0]!r:>12.3f}") == ""


def test_a_field_of_a_model_is_checked_and_described() -> None:
    adapter = TypeAdapter(Annotated[str, Placeholders("query")])
    assert adapter.validate_python("Find {query}.") == "Find {query}."
    with pytest.raises(ValidationError, match=r"lacks \{query\}"):
        adapter.validate_python("Find it.")
    assert adapter.json_schema()["description"] == "keeping the placeholders {query}, with {{ }} for plain braces"


def test_a_value_that_is_written_is_checked() -> None:
    parameter = Parameter("Find {query}.", name="prompt", placeholders=True)
    with pytest.raises(ValueError, match=r"parameter 'prompt' got 'Find it.', which lacks \{query\}"):
        parameter.value = "Find it."
    assert parameter.value == "Find {query}."
