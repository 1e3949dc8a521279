"""Autograd for workflows: record prompts, code and tensors as one graph, and let feedback improve them.

Names load when first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trace_opt.core.adapter import Adapter
    from trace_opt.core.constraint import Ball, Box, Simplex
    from trace_opt.core.context import rollout
    from trace_opt.core.feedback import Feedback
    from trace_opt.core.graph import Graph
    from trace_opt.core.module import Module
    from trace_opt.core.neural import TorchModule
    from trace_opt.core.parameter import Demonstrations, Parameter
    from trace_opt.core.propagate import propagate
    from trace_opt.core.template import Placeholders
    from trace_opt.core.tracer import carry, no_trace, node_of, op_of, plain, record, trace
    from trace_opt.core.trainable import parameter_of
    from trace_opt.llm.connect import connect
    from trace_opt.llm.meter import charge
    from trace_opt.optim.categorical import Categorical
    from trace_opt.optim.demos import Demos
    from trace_opt.optim.numeric.gradient import Gradient
    from trace_opt.optim.numeric.growth import BatchGrowth
    from trace_opt.optim.numeric.implicit import implicit
    from trace_opt.optim.numeric.lagrangian import AugmentedLagrangian
    from trace_opt.optim.numeric.lv_hba import LVHBA
    from trace_opt.optim.numeric.schedules import Refined
    from trace_opt.optim.numeric.several import ParetoDA
    from trace_opt.optim.numeric.surrogate import Surrogate
    from trace_opt.optim.numeric.zeroth import ZerothOrder
    from trace_opt.optim.opro import OPRO
    from trace_opt.optim.optoprime import OptoPrime
    from trace_opt.problem import Problem
    from trace_opt.refine.episodes import Episodes
    from trace_opt.refine.export import export_adapter
    from trace_opt.refine.policy import TrainablePolicy
    from trace_opt.refine.refiner import Refiner
    from trace_opt.refine.reward_model import RewardModel
    from trace_opt.refine.warm_start import fine_tune
    from trace_opt.search.approving import Approval
    from trace_opt.search.beam import Beam
    from trace_opt.search.budget import Budget
    from trace_opt.search.engine import aoptimize, optimize
    from trace_opt.search.evaluate import evaluate
    from trace_opt.search.greedy import Greedy
    from trace_opt.search.guards import Guards
    from trace_opt.search.pareto import Pareto
    from trace_opt.search.processes import ProcessExecutor
    from trace_opt.search.ray import RayExecutor
    from trace_opt.search.run import load_values

__version__ = "0.1.0"

__all__ = [
    "LVHBA",
    "OPRO",
    "Adapter",
    "Approval",
    "AugmentedLagrangian",
    "Ball",
    "BatchGrowth",
    "Beam",
    "Box",
    "Budget",
    "Categorical",
    "Demonstrations",
    "Demos",
    "Episodes",
    "Feedback",
    "Gradient",
    "Graph",
    "Greedy",
    "Guards",
    "Module",
    "OptoPrime",
    "Parameter",
    "Pareto",
    "ParetoDA",
    "Placeholders",
    "Problem",
    "ProcessExecutor",
    "RayExecutor",
    "Refined",
    "Refiner",
    "RewardModel",
    "Simplex",
    "Surrogate",
    "TorchModule",
    "TrainablePolicy",
    "ZerothOrder",
    "aoptimize",
    "carry",
    "charge",
    "connect",
    "evaluate",
    "export_adapter",
    "fine_tune",
    "implicit",
    "load_values",
    "no_trace",
    "node_of",
    "op_of",
    "optimize",
    "parameter_of",
    "plain",
    "propagate",
    "record",
    "rollout",
    "trace",
]

_MODULES = {
    "Adapter": "core.adapter",
    "Approval": "search.approving",
    "AugmentedLagrangian": "optim.numeric.lagrangian",
    "Ball": "core.constraint",
    "BatchGrowth": "optim.numeric.growth",
    "Beam": "search.beam",
    "Box": "core.constraint",
    "Budget": "search.budget",
    "Categorical": "optim.categorical",
    "Demonstrations": "core.parameter",
    "Demos": "optim.demos",
    "Episodes": "refine.episodes",
    "Feedback": "core.feedback",
    "Gradient": "optim.numeric.gradient",
    "Graph": "core.graph",
    "Greedy": "search.greedy",
    "Guards": "search.guards",
    "LVHBA": "optim.numeric.lv_hba",
    "Module": "core.module",
    "OPRO": "optim.opro",
    "OptoPrime": "optim.optoprime",
    "Parameter": "core.parameter",
    "Pareto": "search.pareto",
    "ParetoDA": "optim.numeric.several",
    "Placeholders": "core.template",
    "Problem": "problem",
    "ProcessExecutor": "search.processes",
    "RayExecutor": "search.ray",
    "Refined": "optim.numeric.schedules",
    "Refiner": "refine.refiner",
    "RewardModel": "refine.reward_model",
    "Simplex": "core.constraint",
    "Surrogate": "optim.numeric.surrogate",
    "TorchModule": "core.neural",
    "TrainablePolicy": "refine.policy",
    "ZerothOrder": "optim.numeric.zeroth",
    "aoptimize": "search.engine",
    "carry": "core.tracer",
    "charge": "llm.meter",
    "connect": "llm.connect",
    "evaluate": "search.evaluate",
    "export_adapter": "refine.export",
    "fine_tune": "refine.warm_start",
    "implicit": "optim.numeric.implicit",
    "load_values": "search.run",
    "no_trace": "core.tracer",
    "node_of": "core.tracer",
    "op_of": "core.tracer",
    "optimize": "search.engine",
    "parameter_of": "core.trainable",
    "plain": "core.tracer",
    "propagate": "core.propagate",
    "record": "core.tracer",
    "rollout": "core.context",
    "trace": "core.tracer",
}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'trace_opt' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"trace_opt.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
