"""What a plug-in author tests with: a model double, a check of gradients, and what every optimizer has to keep to.

None of it needs a network, a key or a wait.
"""

from trace_opt.llm.limits import no_waits
from trace_opt.testing.contract import OptimizerContract
from trace_opt.testing.gradients import check_gradients
from trace_opt.testing.models import ScriptedLLM

__all__ = ["OptimizerContract", "ScriptedLLM", "check_gradients", "no_waits"]
