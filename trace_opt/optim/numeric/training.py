"""How a `Gradient` trains: its options, checked when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from trace_opt.errors import meant

if TYPE_CHECKING:
    import torch

    from trace_opt.optim.numeric.clipping import Norm
    from trace_opt.optim.numeric.growth import BatchGrowth
    from trace_opt.optim.numeric.schedules import Refined
    from trace_opt.optim.numeric.several import ParetoDA
    from trace_opt.optim.numeric.surrogate import Surrogate

Estimator = Literal["reinforce", "loo", "enumerate", "reparam"]
SampledLoss = Callable[[Any, Any, "torch.Generator"], "torch.Tensor"]
"""`(output, example, generator) -> loss` of labels that are drawn from the model's own output."""


class Options(TypedDict, total=False):
    """What `Gradient` takes besides its optimizer, learning rate and schedule. All have defaults.

    Attributes:
        steps: Minibatch steps of a phase; one epoch by default.
        total_steps: Steps of the whole training, by which the schedule runs and at which it ends; by default the
            schedule runs by the share of the budget that is spent.
        batch: Training rollouts of a step, or a `BatchGrowth`; 8 by default, 1 where the examples are batches of a
            DataLoader.
        micro_batch: Rollouts whose recordings live at once; the whole minibatch by default.
        clip: The greatest norm of all gradients together.
        clip_channels: The greatest gradient at each position of an op's value, by op name, as its largest entry or with
            "l2" as its length: `{"decode": 0.1, "score": (1.0, "l2")}` (PGC, arXiv 2310.12474).
        device: Where a phase's copies live: None where each parameter is, "auto" on the GPU where there is one, or a
            device's name. For workflows that make no tensors of their own on another device.
        groups: Options of the optimizer for some parameters, by a pattern of their names: `{"head.*": {"lr": 0.1}}`.
        options: Further options of the optimizer, such as `{"weight_decay": 0.1}`.
        combine: How several losses become one step: "mean", "mgda", "upgrad", or a `ParetoDA`.
        estimator: Makes it handle choices too, by the gradient of their probabilities: "reinforce", "loo",
            "enumerate", or "reparam" for choices that are numbers or tensors.
        samples: Draws of the choices for each example, for "reinforce", "loo" and "reparam".
        surrogate: Many steps on one gradient of an expensive part (SSO, arXiv 2302.02607); the optimizer's own, or
            where no learning rate is given plain ones of searched length.
        sampled_loss: The loss on labels drawn from the model's own output; sophia-g needs it.
        reuse: Whether op calls that depend on nothing that moves are run once for each example of a phase.
        checkpoint_every: Steps after which a phase under way is committed.
        record_norms: Whether the norm of each step's gradient is kept, for a refined schedule later.
        compile: Whether the optimizer's step is compiled by `torch.compile`.
    """

    steps: int | None
    total_steps: int | None
    batch: int | BatchGrowth | None
    micro_batch: int | None
    clip: float | None
    clip_channels: Mapping[str, float | tuple[float, Norm]]
    device: str | None
    groups: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    combine: Literal["mean", "mgda", "upgrad"] | ParetoDA
    estimator: Estimator | None
    samples: int
    surrogate: Surrogate | None
    sampled_loss: SampledLoss | None
    reuse: bool
    checkpoint_every: int
    record_norms: bool
    compile: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The options of a `Gradient`, as in `Options`."""

    optimizer: str
    lr: float | None
    schedule: str | Refined = "linear"
    steps: int | None = None
    total_steps: int | None = None
    batch: int | BatchGrowth | None = None
    micro_batch: int | None = None
    clip: float | None = None
    clip_channels: Mapping[str, Any] = field(default_factory=dict[str, Any])
    device: str | None = None
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    combine: Any = "mean"
    estimator: Estimator | None = None
    samples: int = 4
    surrogate: Surrogate | None = None
    sampled_loss: SampledLoss | None = None
    reuse: bool = True
    checkpoint_every: int = 500
    record_norms: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "total_steps", "batch", "micro_batch", "samples", "checkpoint_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or (isinstance(value, int) and value < 1):
                raise ValueError(f"Gradient got {name}={value!r}; give a whole number of at least 1")
        for name in ("lr", "clip"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"Gradient got {name}={value!r}; give a number above 0")
        if self.estimator not in (None, "reinforce", "loo", "enumerate", "reparam"):
            raise ValueError(
                f"Gradient got estimator={self.estimator!r}; give 'reinforce', 'loo', 'enumerate' or 'reparam'"
            )
        if self.estimator == "loo" and self.samples < 2:
            raise ValueError("Gradient got estimator='loo' with samples=1; leaving one out needs at least 2")
        if self.optimizer == "sophia-g" and self.sampled_loss is None:
            raise ValueError(
                "Gradient got optimizer='sophia-g' without sampled_loss=; give (output, example, generator) -> loss on "
                "labels drawn from the model's own output (observed labels would bias its curvature)"
            )

    @classmethod
    def of(cls, optimizer: str, lr: float | None, schedule: Any, options: Mapping[str, Any]) -> Training:
        """The options, their names checked.

        Raises:
            ValueError: one is unknown, or makes no sense.
        """
        known = Options.__optional_keys__
        for name in options:
            if name not in known:
                hint = meant(name, known, f"known: {', '.join(sorted(known))}")
                raise ValueError(
                    f"Gradient has no option {name!r}; {hint}; options of the optimizer go into options={{}}"
                )
        return cls(optimizer=optimizer.lower(), lr=lr, schedule=schedule, **options)
