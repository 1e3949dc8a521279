r"""Where generated code runs: `monty` unless asked otherwise, `process` for full Python, `trusted` for people who mean it.

    sandbox_of("monty").call("def twice(x):\n    return 2 * x\n", "twice", (3,), returns=int)

All fail in one way, `CodeError`, and leave nothing behind. See base.py for the protocol.
"""

from __future__ import annotations

import difflib
import threading

from trace_opt.core.sandbox.base import ANY, Limits, Sandbox
from trace_opt.errors import TraceError

__all__ = ["ANY", "NAMES", "Limits", "Sandbox", "sandbox_of"]

NAMES = ("monty", "process", "trusted")

_shared: dict[str, Sandbox] = {}
_lock = threading.Lock()


def sandbox_of(choice: str | Sandbox) -> Sandbox:
    """The sandbox of a name, one for the whole process so that workers are shared; a Sandbox is given back.

    Args:
        choice: `"monty"`, `"process"`, `"trusted"`, or a Sandbox with limits of its own.

    Raises:
        TraceError: there is none of that name, or it cannot run here.
    """
    if isinstance(choice, Sandbox):
        return choice
    with _lock:
        if choice not in _shared:
            _shared[choice] = _made(choice)
        return _shared[choice]


def _made(name: str) -> Sandbox:
    if name == "monty":
        from trace_opt.core.sandbox.monty import Monty

        return Monty()
    if name == "process":
        from trace_opt.core.sandbox.process import Process

        refusal = Process.refusal()
        if refusal is not None:
            raise TraceError(refusal)
        return Process()
    if name == "trusted":
        from trace_opt.core.sandbox.trusted import Trusted

        return Trusted()
    near = difflib.get_close_matches(str(name), NAMES, n=1)
    hint = f"; did you mean {near[0]!r}" if near else f"; choose one of {list(NAMES)!r}"
    raise TraceError(f"there is no sandbox {name!r}{hint}")
