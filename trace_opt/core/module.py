"""Objects that hold parameters as attributes, in a tree that gives them their names."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from trace_opt.core.codec import dump_value, restore_value
from trace_opt.core.parameter import Parameter, by_name
from trace_opt.errors import TraceError

if TYPE_CHECKING:
    from trace_opt.core.trainable import Code

_FORMAT = 1

HELD = "_trainable"
"""The attribute in which a Module keeps the Parameters of its trainable methods (core/trainable.py)."""


class Module:
    """A part of a workflow with parameters of its own.

    Parameters and Modules that are attributes, also in lists, tuples and dicts, belong to it. A parameter's full name is
    the path of attributes below the outermost Module: `planner.prompt`.

    Args:
        name: Leads the names of all parameters below; without it the outermost Module adds nothing.
    """

    def __init__(self, name: str | None = None) -> None:
        self._own_name = name

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Self:
        """An object with a Parameter for the source of each trainable method of its class."""
        made = super().__new__(cls)
        codes = _trainable_methods(cls)
        if codes:
            setattr(made, HELD, {name: code.make_parameter(None) for name, code in codes.items()})
        return made

    def __setattr__(self, attribute: str, value: Any) -> None:
        object.__setattr__(self, attribute, value)
        if not attribute.startswith("__"):
            self._adopt(value)

    def _adopt(self, value: Any) -> None:
        """Become the owner of parameters and Modules in a value whose owner has let go of them or that have none."""
        for _, item in _members("", value):
            owner: Module | None = item.owner if isinstance(item, Parameter) else item.__dict__.get("_owner")
            if owner is not None and owner._path_of(item) is not None:
                continue
            if isinstance(item, Parameter):
                item.owner = self
            elif all(item is not above for above in self._line()):  # a child that names its parent does not own it
                object.__setattr__(item, "_owner", self)

    def _line(self) -> Iterator[Module]:
        """This Module, the one it belongs to, and so on."""
        module: Module | None = self
        while module is not None:
            yield module
            module = module.__dict__.get("_owner")

    def full_name(self, parameter: Parameter[Any]) -> str:
        """The full name of a parameter of this Module.

        Raises:
            TraceError: it is no longer one of its attributes and was given no name.
        """
        own = parameter.own_name or self._path_of(parameter)
        if own is None:
            raise TraceError(
                "a parameter without a name is no attribute of its Module any more; pass name= when it is made"
            )
        return ".".join([*self._prefix(), own])

    def _path_of(self, member: Any) -> str | None:
        for attribute, value in self.__dict__.items():
            if attribute != "_owner":
                for path, item in _members(attribute, value):
                    if item is member:
                        return path.removeprefix(f"{HELD}.")
        return None

    def _prefix(self) -> list[str]:
        parts: list[str] = []
        for module in self._line():
            own: str | None = module.__dict__.get("_own_name")
            owner: Module | None = module.__dict__.get("_owner")
            if own is None and owner is not None:
                own = owner._path_of(module)
            if own:
                parts.append(own)
        return parts[::-1]

    def _all(self) -> Iterator[Parameter[Any]]:
        seen: set[int] = {id(self)}
        todo: list[Module] = [self]
        while todo:
            module = todo.pop(0)
            for attribute, value in module.__dict__.items():
                if attribute == "_owner":
                    continue
                module._adopt(value)  # a list may have grown since it was assigned
                for _, item in _members(attribute, value):
                    if id(item) in seen:
                        continue
                    seen.add(id(item))
                    if isinstance(item, Parameter):
                        yield item
                    else:
                        todo.append(item)

    def named_parameters(self) -> dict[str, Parameter[Any]]:
        """All parameters below, by full name.

        Raises:
            TraceError: two have one name.
        """
        return by_name(self._all())

    def parameters(self) -> list[Parameter[Any]]:
        """All parameters below, in the order of attributes."""
        return list(self.named_parameters().values())

    def state_dict(self) -> dict[str, Any]:
        """The values of all parameters below, by full name."""
        return {name: parameter.initial for name, parameter in self.named_parameters().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Write values into the parameters below; all of them or none.

        Raises:
            ValueError: names are missing or unknown, or a value is not allowed.
        """
        known = self.named_parameters()
        if set(state) != set(known):
            missing, unknown = sorted(set(known) - set(state)), sorted(set(state) - set(known))
            raise ValueError(
                f"the state lacks {missing!r} and has unknown {unknown!r}; pass what state_dict() returned"
            )
        checked = {name: parameter.check(state[name]) for name, parameter in known.items()}
        for name, parameter in known.items():
            parameter.value = checked[name]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the values of all parameters below to a JSON file; the file is replaced in one step."""
        values = {name: dump_value(parameter, parameter.initial) for name, parameter in self.named_parameters().items()}
        target = Path(path)
        part = target.with_name(f"{target.name}.part")
        part.write_text(json.dumps({"format": _FORMAT, "values": values}, indent=2, ensure_ascii=False), "utf-8")
        part.replace(target)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Read values that `save` wrote; all of them or none.

        Raises:
            ValueError: the file is no such file, or its values do not fit.
        """
        known = self.named_parameters()
        try:
            stored: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))["values"]
            state = {
                name: restore_value(known[name], value) if name in known else value for name, value in stored.items()
            }
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, LookupError, TypeError) as error:
            raise ValueError(f"{str(path)!r} holds no saved parameters; give a file that Module.save wrote") from error
        self.load_state_dict(state)


def _trainable_methods(kind: type) -> dict[str, Code]:
    """The trainable methods of a class by the names of their parameters, its own before those it inherits."""
    found: dict[str, Code] = {}
    for base in kind.__mro__:
        for member in vars(base).values():
            code = getattr(member, "__trace_code__", None) if inspect.isfunction(member) else None
            if code is not None and code not in found.values():
                found[code.name if code.name not in found else f"{base.__name__}.{code.name}"] = code
    return found


def _members(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Parameters and Modules in an attribute's value, with the path that leads to them."""
    if isinstance(value, (Parameter, Module)):
        yield path, cast("Any", value)
    elif type(value) in (list, tuple):
        for i, item in enumerate(cast("list[Any]", value)):
            yield from _members(f"{path}.{i}", item)
    elif type(value) is dict:
        for key, item in cast("dict[Any, Any]", value).items():
            yield from _members(f"{path}.{key}", item)
