"""Several numbers and tensors as one vector in comparable units, with what is allowed of it.

Searches without gradients know one learning rate and one radius for all coordinates. So an entry between two bounds counts
in half widths around their middle, and any other in units of its starting value or of 1, whichever is larger.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from trace_opt.core.constraint import Ball, Box, Simplex
from trace_opt.core.parameter import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.core.parameter import Parameter

_BOUNDS = ("ge", "gt", "le", "lt")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The least and the greatest value allowed, both included; infinite where there is none."""

    low: float = -math.inf
    high: float = math.inf

    def clip(self, value: float) -> float:
        """The nearest value allowed."""
        return min(max(value, self.low), self.high)


def bounds_of(parameter: Parameter[Any]) -> Bounds | None:
    """The bounds of a float parameter, `type=Annotated[float, Field(ge=..., le=...)]` included.

    Returns:
        None where it holds no float, or its type says more than bounds.
    """
    if parameter.choices is not None or not isinstance(parameter.initial, (int, float)):
        return None
    annotation: Any = parameter.annotation
    if annotation is float and not isinstance(parameter.initial, bool):
        return Bounds()
    if typing.get_origin(annotation) is not typing.Annotated or typing.get_args(annotation)[0] is not float:
        return None
    found = Bounds()
    for rule in _rules(typing.get_args(annotation)[1:]):
        limits = {name: float(limit) for name in _BOUNDS if (limit := getattr(rule, name, None)) is not None}
        if not limits and type(rule).__name__ != "AllowInfNan":
            return None
        found = _within(found, limits)
    return found


def handled(parameter: Parameter[Any]) -> bool:
    """Whether a parameter is a float or a floating tensor, choices left aside."""
    if parameter.choices is not None:
        return False
    value = parameter.initial
    return value.is_floating_point() if is_tensor(value) else bounds_of(parameter) is not None


class Vector:
    """The flattening of some parameters. Coordinates are (value - centre) / unit, float64 on the CPU.

    Args:
        parameters: Those that `handled` takes, in order.

    Attributes:
        size: Number of coordinates.
        centre: Value at coordinate 0, [size].
        unit: What a coordinate counts in, in the parameters' own units, [size].
    """

    def __init__(self, parameters: Sequence[Parameter[Any]]) -> None:
        import torch

        self._parts = [_Part.of(parameter) for parameter in parameters]
        self.centre = torch.cat([part.centre for part in self._parts])
        self.unit = torch.cat([part.unit for part in self._parts])
        self.size = len(self.centre)

    def read(self) -> Tensor:
        """Coordinates of the values in force, [size]."""
        return self.place({part.name: part.parameter.value for part in self._parts})

    def place(self, values: Mapping[str, Any]) -> Tensor:
        """Coordinates of values by name, [size]."""
        import torch

        flat = torch.cat([part.flat(values[part.name]) for part in self._parts])
        return (flat - self.centre) / self.unit

    def values(self, at: Tensor) -> dict[str, Any]:
        """The allowed values nearest to coordinates [size], by name: floats, and tensors like those of the start."""
        flat: Any = self.centre + self.unit * at
        pieces = flat.split([len(part.centre) for part in self._parts])
        return {part.name: part.value(piece) for part, piece in zip(self._parts, pieces, strict=True)}

    def project(self, at: Tensor) -> Tensor:
        """The coordinates of what is really run for coordinates [m, size] or [size]: bounds and dtype applied."""
        import torch

        if at.ndim == 1:
            return self.place(self.values(at))
        return torch.stack([self.place(self.values(row)) for row in at])

    def coupled(self, squares: Tensor) -> Tensor:
        """Squares of a gradient [size], those of entries that one norm or sum holds together replaced by their mean.

        Steps of a length of its own in every coordinate, once projected, come to rest at points that are not optimal there.
        """
        import torch

        pieces: Any = cast("Any", squares).split([len(part.centre) for part in self._parts])
        shared = [p.mean().expand(len(p)) if part.coupled else p for part, p in zip(self._parts, pieces, strict=True)]
        return torch.cat(shared)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One parameter's stretch of the vector."""

    parameter: Parameter[Any]
    name: str
    centre: Tensor
    unit: Tensor
    bounds: Bounds

    @classmethod
    def of(cls, parameter: Parameter[Any]) -> _Part:
        start = _flat(parameter.initial)
        centre, unit, bounds = start.new_zeros(len(start)), start.abs().clamp_min(1.0), Bounds()
        rule = parameter.constraint
        if isinstance(rule, Box):
            bounds = Bounds(rule.low, rule.high)
        elif isinstance(rule, Ball):
            unit = start.new_full((len(start),), rule.radius)
        elif isinstance(rule, Simplex):
            centre, unit = start.new_full((len(start),), 0.5), start.new_full((len(start),), 0.5)
        elif not is_tensor(parameter.initial):
            bounds = bounds_of(parameter) or bounds
        width = bounds.high - bounds.low
        if 0 < width < math.inf:
            centre = start.new_full((len(start),), bounds.low + width / 2)
            unit = start.new_full((len(start),), width / 2)
        return cls(parameter, parameter.name, centre, unit, bounds)

    @property
    def coupled(self) -> bool:
        return isinstance(self.parameter.constraint, (Ball, Simplex))

    def flat(self, value: Any) -> Tensor:
        return _flat(value)

    def value(self, flat: Tensor) -> Any:
        start = self.parameter.initial
        clipped = flat.clamp(self.bounds.low, self.bounds.high)
        if not is_tensor(start):
            return self.bounds.clip(float(clipped[0]))
        shaped = clipped.reshape(start.shape)
        if self.coupled:
            shaped = cast("Any", self.parameter.constraint).project(shaped)
        return shaped.to(device=start.device, dtype=start.dtype)


def _flat(value: Any) -> Tensor:
    import torch

    if is_tensor(value):
        return value.detach().to("cpu", torch.float64).reshape(-1)
    return torch.tensor([float(value)], dtype=torch.float64)


def _rules(metadata: Iterable[Any]) -> list[Any]:
    """What an annotation demands: the constraints inside a pydantic `Field` one by one."""
    found: list[Any] = []
    for entry in metadata:
        inner = getattr(entry, "metadata", None)
        if inner is not None:
            found += inner
        elif not isinstance(entry, str):
            found.append(entry)
    return found


def _within(bounds: Bounds, limits: Mapping[str, float]) -> Bounds:
    lows = [bounds.low, limits.get("ge", -math.inf)]
    highs = [bounds.high, limits.get("le", math.inf)]
    if "gt" in limits:
        lows.append(math.nextafter(limits["gt"], math.inf))
    if "lt" in limits:
        highs.append(math.nextafter(limits["lt"], -math.inf))
    return Bounds(max(lows), min(highs))
