"""Estimators by name, with the defaults that suit completions: groups of one prompt, one reward at the end."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trace_opt.errors import meant
from trace_opt.refine.advantages import LeaveOneOut
from trace_opt.refine.estimators.base import Estimator
from trace_opt.refine.estimators.grpo import GRPO
from trace_opt.refine.estimators.harpg import HARPG
from trace_opt.refine.estimators.igt import NPGIGT
from trace_opt.refine.estimators.ppo import PPO
from trace_opt.refine.estimators.reinforce import Reinforce

if TYPE_CHECKING:
    from trace_opt.refine.batch import Policy

Factory = Callable[..., Estimator]
"""Called with the policy, and with `lr`, `kl` and options by keyword."""


@dataclass(frozen=True, slots=True)
class _Named:
    make: type[Estimator]
    lr: float
    options: Mapping[str, Any]


_LOO = {"baseline": "leave-one-out"}
_NAMED: dict[str, _Named] = {
    "reinforce": _Named(Reinforce, 1e-3, {**_LOO, "optimizer": "adamw", "clip": 1.0}),
    "normalised-reinforce": _Named(Reinforce, 0.5, {**_LOO, "normalised": True, "schedule": "inverse-sqrt"}),
    "ppo": _Named(PPO, 1e-3, _LOO),
    "grpo": _Named(GRPO, 1e-3, {}),
    "unbiased-grpo": _Named(GRPO, 1e-3, {"unbiased": True}),
    "n-pg-igt": _Named(NPGIGT, 1.0, {**_LOO, "schedule": "inverse", "reach": 1.0}),
    "harpg": _Named(HARPG, 0.1, {**_LOO, "normalised": False}),
    "n-harpg": _Named(HARPG, 0.5, {**_LOO, "normalised": True, "schedule": "inverse-sqrt"}),
}


def names() -> list[str]:
    """The names of the estimators."""
    return list(_NAMED)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an estimator is made, again and again: one for each phase.

    Attributes:
        name: What it is called.
        make: Its class, or what makes one.
        lr: Learning rate, or where steps are normalised the length of the first.
        kl: Price of a nat of divergence from the reference.
        options: Further options of it.
    """

    name: str
    make: Factory
    lr: float
    kl: float
    options: Mapping[str, Any]

    @classmethod
    def of(cls, estimator: str | Factory, lr: float | None, kl: float, options: Mapping[str, Any]) -> Recipe:
        """The recipe of a name, a class or a function, the options' names checked as far as they are known.

        Raises:
            ValueError: there is no such estimator, it has no such option, or a number is out of its range.
        """
        if not isinstance(estimator, str):
            made = getattr(estimator, "__name__", type(estimator).__name__)
            found = cls(made, estimator, 1e-3 if lr is None else lr, kl, dict(options))
        else:
            named = _NAMED.get(estimator.lower())
            if named is None:
                hint = meant(estimator, _NAMED, f"known: {', '.join(_NAMED)}")
                raise ValueError(f"there is no estimator {estimator!r}; {hint}")
            given = {**named.options, **options}
            found = cls(estimator.lower(), named.make, named.lr if lr is None else lr, kl, given)
        found._check()
        return found

    def _check(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"{self.name} got lr={self.lr!r}; give a number above 0")
        if not 0 <= self.kl < math.inf:
            raise ValueError(f"{self.name} got kl={self.kl!r}; give a number of 0 or more")
        if not isinstance(self.make, type):
            return
        known = {"kl"}
        for kind in self.make.__mro__:
            if kind is not object:
                known |= set(inspect.signature(kind.__init__).parameters) - {"self", "policy", "options"}
            if kind is Estimator or "options" not in inspect.signature(kind.__init__).parameters:
                break
        for name in self.options:
            if name not in known:
                raise ValueError(f"{self.name} has no option {name!r}; {meant(name, known, f'known: {sorted(known)}')}")

    @property
    def is_relative(self) -> bool:
        """Whether what it makes judges completions against others of their prompt, as far as the options tell."""
        grouped = isinstance(self.make, type) and issubclass(self.make, GRPO)
        return grouped or self.options.get("baseline") == "leave-one-out"

    @property
    def draws(self) -> int | None:
        """How often an update draws at most; None where a function makes the estimator, which may be any."""
        return self.make.draws if isinstance(self.make, type) and issubclass(self.make, Estimator) else None

    def __call__(self, policy: Policy, scale: float = 1.0) -> Estimator:
        """An estimator of a policy.

        Args:
            policy: Its weights that require grad are moved.
            scale: What the learning rate is multiplied by.
        """
        return self.make(policy, lr=self.lr * scale, kl=self.kl, **self.options)


def is_relative(estimator: Estimator) -> bool:
    """Whether completions are judged against others of their prompt, so that a group of equal rewards says nothing."""
    return isinstance(estimator, GRPO) or isinstance(estimator.baseline, LeaveOneOut)


def draws_elsewhere(estimator: Estimator) -> bool:
    """Whether it samples at weights other than those it steps from, so that it cannot learn from what others sampled."""
    return type(estimator).sample is not Estimator.sample
