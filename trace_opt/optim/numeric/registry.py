"""Every optimizer of tensors by name, with its source and with what differs between the library's form and the paper's.

Libraries first: torch, then pytorch_optimizer and bitsandbytes; our own where no living library has the method. Fused
kernels are taken wherever torch has them, on the CPU too, and lists of tensors at once where that is measured faster.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from trace_opt.errors import ProblemError, meant
from trace_opt.optim.numeric.quantized import optimizer_class
from trace_opt.optim.numeric.stepper import Curvature, Stepper

if TYPE_CHECKING:
    import torch

_NEVER = sys.maxsize
_SMALL = 4096
_SEVERAL = 4


@dataclass(frozen=True)
class Rule:
    """One entry.

    Args:
        name: What it is looked up by.
        path: Module and class, as "torch.optim:AdamW".
        source: The paper.
        doc: What it does, and where the library's form differs from the paper's.
        norm: Which refined schedule suits it: "adam" where a step's length does not grow with the gradient, "sgd" else.
        curvature: The estimate of the Hessian's diagonal that it works with.
        hidden: Options of the class that make no sense here.
        extra: Options that the registry adds, with their defaults.
    """

    name: str
    path: str
    source: str
    doc: str
    norm: Literal["adam", "sgd"] = "adam"
    curvature: Curvature = "none"
    hidden: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """All options with their defaults, "lr" first.

        Raises:
            ProblemError: its library is not installed, or too old to have it.
        """
        left_out = {"self", "params", "kwargs", "differentiable", *self.hidden}
        options = {
            name: parameter.default
            for name, parameter in inspect.signature(self.cls.__init__).parameters.items()
            if name not in left_out and parameter.default is not inspect.Parameter.empty
        }
        return {"lr": options.pop("lr"), **options, **self.extra}

    @cached_property
    def cls(self) -> Any:
        """The class.

        Raises:
            ProblemError: its library is not installed, or too old to have it.
        """
        module, _, name = self.path.partition(":")
        if module == "bitsandbytes.optim":
            return optimizer_class(name)
        found = getattr(importlib.import_module(module), name, None)
        if found is None:
            raise ProblemError(f"{module} has no {name!r}; install a newer one, or choose another optimizer")
        return found


_HIDDEN_IN_SOPHIA = ("update_period", "num_samples", "hessian_distribution")
_HIDDEN_IN_8BIT = ("amsgrad", "optim_bits", "args", "is_paged")

_RULES = (
    Rule("adamw", "torch.optim:AdamW", "arXiv 1711.05101, Algorithm 2", "Adam with decay apart from the gradient."),
    Rule("adam", "torch.optim:Adam", "arXiv 1412.6980, Algorithm 1",
         "Steps scaled by the moving averages of gradient and square."),
    Rule("sgd", "torch.optim:SGD", "Sutskever et al., ICML 2013, for momentum",
         "Plain descent, with momentum where asked for. The learning rate multiplies the momentum at each step instead of "
         "going into it.", norm="sgd"),
    Rule("rmsprop", "torch.optim:RMSprop", "Tieleman and Hinton, 2012; arXiv 1308.0850, equation (40), for centered",
         "Steps scaled by the moving average of the square; eps is added after the root."),
    Rule("adagrad", "torch.optim:Adagrad", "Duchi, Hazan, Singer, JMLR 12, 2011", "Steps scaled by the sum of squares."),
    Rule("nadam", "torch.optim:NAdam", "Dozat, ICLR workshop 2016", "Adam with Nesterov's momentum. torch keeps the product of momenta in the default type: "
         "with float32 there, leaves in float64 end within 1e-7 of the rule."),
    Rule("radam", "torch.optim:RAdam", "arXiv 1908.03265, Algorithm 2",
         "Adam that goes without scaling while its variance is not known; eps is added before the division by the bias "
         "correction."),
    Rule("adamax", "torch.optim:Adamax", "arXiv 1412.6980, Algorithm 2", "Adam with the largest gradient as scale."),
    Rule("adadelta", "torch.optim:Adadelta", "arXiv 1212.5701, Algorithm 1",
         "Steps in the units of the parameters; the paper has no learning rate (1 here)."),
    Rule("asgd", "torch.optim:ASGD", "Polyak and Juditsky, 1992",
         "SGD whose average torch keeps as the state `ax`; the leaves hold the last iterate. A changed learning rate "
         "counts from the step after. torch keeps it in the default type: with float32 there, leaves in float64 end within "
         "1e-7 of the rule.", norm="sgd"),
    Rule("rprop", "torch.optim:Rprop", "Riedmiller and Braun, 1993",
         "Step sizes that grow while signs stay, for whole batches. The learning rate is only the first step size, so a "
         "schedule changes nothing."),
    Rule("adafactor", "torch.optim:Adafactor", "arXiv 1804.04235, Algorithm 4",
         "Row and column averages of the square instead of one for each entry; the learning rate is at most 1/sqrt(t) "
         "times what is given, and times the size of the leaf."),
    Rule("muon", "torch.optim:Muon", "K. Jordan, 2024; arXiv 2502.16982 for adjust_lr_fn",
         "Momentum made orthogonal by five Newton-Schulz steps in bfloat16. Takes matrices only; give other tensors to "
         "another optimizer."),
    Rule("lion", "pytorch_optimizer:Lion", "arXiv 2302.06675, Algorithm 2",
         "The sign of an interpolated momentum; decay comes first. Wants a learning rate 3 to 10 times below AdamW's."),
    Rule("sophiah", "pytorch_optimizer:SophiaH", "arXiv 2305.14342, Algorithms 1 and 3",
         "Momentum over the Hessian's diagonal, clipped; estimated by a second backward every `every` steps. The library "
         "clips m / max(h, eps) at p where the paper clips m / max(gamma h, eps) at 1: the same step with gamma = p and "
         "lr = (the paper's lr) / p.", curvature="hessian", hidden=_HIDDEN_IN_SOPHIA, extra={"every": 10}),
    Rule("sophia-g", "trace_opt.optim.numeric.sophia:SophiaG", "arXiv 2305.14342, Algorithms 2 and 3",
         "Sophia on Gauss-Newton-Bartlett estimates every `every` steps; needs sampled_loss=, a loss on labels drawn from "
         "the model's own output. The official code applies the batch's size at the step; here it is in the estimate.",
         curvature="gauss-newton", extra={"every": 10}),
    Rule("diffgrad", "pytorch_optimizer:DiffGrad", "arXiv 1909.11015, equations (6) to (10)",
         "Adam, slower where the gradient hardly changes. The library adds eps to sqrt(v + 1e-15) before the correction of "
         "bias where the paper adds it to sqrt of the corrected v: about 1e-7 apart."),
    Rule("adabelief", "pytorch_optimizer:AdaBelief", "arXiv 2010.07468, Algorithm 2",
         "Adam scaled by how far gradients are from their average. eps 1e-16 is for float64; in float32 it is felt only "
         "through its root."),
    Rule("exadam", "pytorch_optimizer:EXAdam", "arXiv 2412.20302; growing=True: its first version",
         "Adam with cross corrections and a gradient part. Decay apart from the gradient is the official code's, not the "
         "paper's. growing=True multiplies lr by ln(sqrt(2) sqrt(t + 1)), which the second version dropped. Its first "
         "steps are up to 16 times Adam's: start with a learning rate ten times below.", extra={"growing": False}),
    Rule("adamw8bit", "bitsandbytes.optim:AdamW8bit", "arXiv 2110.02861",
         "AdamW with two bytes of state an entry; about 1 % of the way apart from it. Tensors under `min_8bit_size` "
         "elements keep 32 bits. Saves memory, not time. Extra `quantized`.", hidden=_HIDDEN_IN_8BIT),
    Rule("lion8bit", "bitsandbytes.optim:Lion8bit", "arXiv 2110.02861; arXiv 2302.06675",
         "Lion with one byte of state an entry; a few percent of the signs differ. Tensors under `min_8bit_size` elements "
         "keep 32 bits. Extra `quantized`.", hidden=_HIDDEN_IN_8BIT),
    Rule("lion-k", "trace_opt.optim.numeric.lion_k:LionK", "arXiv 2310.05898, equation (3)",
         "Lion that keeps a constraint without projecting: constraint= \"box\", \"l2\", \"l1\", \"huber\", \"group\", "
         "\"spectral\" or \"nuclear\", bounded by 1 / weight_decay."),
    Rule("m-fac", "trace_opt.optim.numeric.mfac:MFAC", "arXiv 2107.03356, section 3.2",
         "The inverse Fisher matrix of a window of gradients, exactly. Divides by the gradients seen, where the official "
         "code divides by the window from the start; that code has window 1024 and damping 1e-5.", norm="sgd"),
    Rule("frugal", "trace_opt.optim.numeric.frugal:Frugal", "arXiv 2411.07837, Algorithms 1 and 2",
         "AdamW on a share rho of every matrix, signSGD on the rest."),
    Rule("adagrad-norm", "trace_opt.optim.numeric.adagrad_norm:AdaGradNorm", "arXiv 1806.01811, Algorithm 1",
         "One step size for all parameters, from the norms of all gradients so far. The official code of arXiv 2402.11215 "
         "keeps a sum for each row instead.", norm="sgd"),
)  # fmt: skip
_BY_NAME = {entry.name: entry for entry in _RULES}


def names() -> list[str]:
    """The names of all optimizers."""
    return list(_BY_NAME)


def rule(name: str) -> Rule:
    """The entry of a name, in any case of letters.

    Raises:
        ValueError: there is none.
    """
    found = _BY_NAME.get(name.lower())
    if found is None:
        raise ValueError(f"there is no optimizer {name!r}{_near(name.lower(), _BY_NAME)}; choose one of {names()!r}")
    return found


def build(
    name: str, groups: Iterable[Mapping[str, Any]] | Iterable[torch.Tensor], *, lr: float | None = None, **options: Any
) -> Stepper:
    """The optimizer over these leaves.

    Args:
        name: One of `names()`, in any case of letters.
        groups: Leaves, or groups as torch takes them: {"params": [...], option: value}.
        lr: Learning rate; the library's default where left out.
        **options: Those of `rule(name).defaults`.

    Raises:
        ValueError: there is no such name or option, or an option makes no sense.
        ProblemError: its library is not installed, or too old to have it.
    """
    entry = rule(name)
    given: list[Any] = list(groups)
    made: list[dict[str, Any]] = (
        [{**group, "params": list(group["params"])} for group in given]
        if given and isinstance(given[0], Mapping)
        else [{"params": given}]
    )
    leaves: list[Any] = [leaf for group in made for leaf in group["params"]]
    if not leaves:
        raise ValueError(f"{entry.name} got no tensors; give at least one")
    _check_options(entry, options)
    if entry.name == "muon":
        _check_matrices(leaves)
    extra = {option: options.pop(option, default) for option, default in entry.extra.items()}
    options = {**_kernels(entry, leaves, options), **options, **({} if lr is None else {"lr": lr})}
    if entry.curvature == "hessian":
        options["update_period"] = _NEVER  # estimates are handed in
    own = [list(group) for group in made]  # the class fills the groups up
    optimizer: Any = entry.cls(made, **options)
    for options_of_group in own:
        _check_group(entry, options_of_group, optimizer)
    every = extra.get("every", 0)
    if entry.curvature != "none" and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
        raise ValueError(f"{entry.name} got every={every!r}; give a whole number of at least 1")
    return Stepper(
        entry.name,
        optimizer,
        curvature=entry.curvature,
        every=every,
        growing=bool(extra.get("growing", False)),
        copies=_writes_gradients(entry, options, made),
    )


def _check_options(entry: Rule, options: Iterable[str]) -> None:
    known = entry.defaults
    for option in options:
        if option not in known:
            raise ValueError(
                f"{entry.name} has no option {option!r}{_near(option, known)}; there are {', '.join(sorted(known))}"
            )


def _check_group(entry: Rule, given: Iterable[str], optimizer: torch.optim.Optimizer) -> None:
    """Refuse what a group cannot have of its own."""
    known = [option for option in entry.defaults if option in optimizer.defaults]
    for option in given:
        if option != "params" and option not in known:
            raise ValueError(
                f"a group of {entry.name} has no option {option!r} of its own{_near(option, known)}; there are "
                f"{', '.join(sorted(known))}"
            )


def _check_matrices(leaves: Sequence[torch.Tensor]) -> None:
    for leaf in leaves:
        if leaf.ndim != 2:
            raise ValueError(
                f"muon takes matrices only, and got a tensor of shape {tuple(leaf.shape)!r}; give it to another optimizer"
            )


def _kernels(entry: Rule, leaves: Sequence[torch.Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Which implementation to take, where the options leave it open.

    On the CPU torch's fused kernels are 1.4 to 6 times faster than its loop over tensors at every size. All tensors at
    once ("foreach") is the way on GPUs, where each kernel costs a launch, and on the CPU for several small tensors: half
    the time of the loop at a thousand elements each, three quarters at 4,096, nothing won beyond.
    """
    known = entry.defaults
    if any(options.get(option) is not None for option in ("fused", "foreach", "capturable")):
        return {}
    kinds = {leaf.device.type for leaf in leaves}
    if "fused" in known and all(leaf.is_floating_point() for leaf in leaves) and kinds <= _fused_on(entry.name):
        return {"fused": True}
    if "foreach" not in known:
        return {}
    small = len(leaves) >= _SEVERAL and sum(leaf.numel() for leaf in leaves) <= _SMALL * len(leaves)
    return {"foreach": bool(small or kinds == {"cuda"})}


def _fused_on(name: str) -> set[str]:
    """Devices with fused kernels; Adagrad's is the CPU's only."""
    return {"cpu"} if name == "adagrad" else {"cpu", "cuda"}


def _writes_gradients(entry: Rule, options: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether pytorch_optimizer changes gradients in place: for maximize, and for decay that is part of the gradient."""
    if not entry.path.startswith("pytorch_optimizer:"):
        return False
    coupled = any(not group.get("weight_decouple", True) for group in (options, *groups))
    return bool(options.get("maximize")) or coupled


def _near(name: str, known: Iterable[str]) -> str:
    hint = meant(name, known)
    return f"; {hint}" if hint else ""
