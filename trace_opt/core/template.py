"""Prompt templates: texts with names in braces that a new value must keep, since the workflow fills them.

`Parameter("Answer {question}.", placeholders=True)`, and for a field of a pydantic model
`Annotated[str, Placeholders("question")]`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any

# what str.format would do for a text that a model wrote: look into objects, or ask for gigabytes of padding
_PRIVATE = re.compile(r"[.\[]_")
_WIDE = re.compile(r"\d{4}")


class Placeholders:
    """What a template must hold; also pydantic metadata.

    Args:
        names: The names that must stand in braces, as `str.format` writes them.
    """

    __slots__ = ("names",)

    def __init__(self, *names: str) -> None:
        self.names = names

    def fault(self, text: str) -> str:
        """Why a text cannot be used, as the end of a sentence, or "" where it can."""
        try:
            found = named_in(text)
        except ValueError as error:
            return f"is no template ({error}); write {{{{ and }}}} for braces that are to stay"
        missing = [name for name in self.names if name not in found]
        if missing:
            return f"lacks {_listed(missing)}; keep every placeholder: {_listed(self.names)}"
        unknown = [name for name in found if name not in self.names]
        if unknown:
            return f"has {_listed(unknown)}, which nothing fills; use only {_listed(self.names)}, and {{{{ }}}} for plain braces"
        bad = next(
            (place for place in _places(text) if _PRIVATE.search(":".join(place)) or _WIDE.search(place[1])), None
        )
        if bad is not None:
            return f"fills a placeholder with {bad[0]!r} as {bad[1]!r}, which reads private names or pads without end; write the name alone"
        return ""

    @property
    def text(self) -> str:
        """The rule in words."""
        return f"keeping the placeholders {_listed(self.names)}, with {{{{ }}}} for plain braces"

    def checked(self, text: str) -> str:
        """The text.

        Raises:
            ValueError: it cannot be used.
        """
        fault = self.fault(text)
        if fault:
            raise ValueError(f"the template {fault}")
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        made = handler(schema)
        said = made.get("description")
        made["description"] = f"{said}; {self.text}" if said else self.text
        return made

    def __repr__(self) -> str:
        return f"Placeholders({', '.join(map(repr, self.names))})"


def named_in(template: str) -> list[str]:
    """The names in braces, each once, without attributes, indices, conversions and formats.

    Raises:
        ValueError: the braces do not match, or a place has no name.
    """
    names: dict[str, None] = {}
    for _, field, form, _ in string.Formatter().parse(template):
        if field is None:
            continue
        name = field.split(".")[0].split("[")[0]
        if not name or name.isdigit():
            raise ValueError("a placeholder has no name")
        names[name] = None
        names |= dict.fromkeys(named_in(form or ""))
    return list(names)


def _places(template: str) -> list[tuple[str, str]]:
    """What is written in each pair of braces: the field, and how it is laid out."""
    return [(field, form or "") for _, field, form, _ in string.Formatter().parse(template) if field is not None]


def placeholders_of(value: Any, names: Sequence[str] | bool, parameter: str | None) -> Placeholders:  # noqa: FBT001 # as given
    """The placeholders of a parameter: those given, or those of its starting value.

    Raises:
        ValueError: the value is no text, or no template.
    """
    if not isinstance(value, str):
        raise ValueError(f"parameter {parameter!r} got placeholders= for {value!r:.60}; only a text can have them")  # noqa: TRY004 # a value refused, like any other
    if isinstance(names, bool):
        try:
            return Placeholders(*named_in(value))
        except ValueError as error:
            raise ValueError(
                f"parameter {parameter!r} got placeholders=True for a text that is no template: {error}"
            ) from None
    return Placeholders(*([names] if isinstance(names, str) else names))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names)
