"""Which model an optimizer asks when nobody handed it one, and why that one."""

from __future__ import annotations

import os

from trace_opt.llm.base import LLM
from trace_opt.llm.connect import connect

VARIABLE = "TRACE_OPT_MODEL"

_BY_KEY = (
    ("OPENAI_API_KEY", "openai/gpt-4.1-mini"),
    ("ANTHROPIC_API_KEY", "anthropic/claude-sonnet-4-5"),
    ("GEMINI_API_KEY", "gemini/gemini-2.5-flash"),
    ("MISTRAL_API_KEY", "mistral/mistral-large-latest"),
    ("GROQ_API_KEY", "groq/llama-3.3-70b-versatile"),
    ("DEEPSEEK_API_KEY", "deepseek/deepseek-chat"),
)


def choose_model(option: str | None = None) -> tuple[LLM | None, str]:
    """The model that optimizers ask.

    Args:
        option: What the user named, as with `--model`; None leaves it to the environment.

    Returns:
        The model and why it is this one; or None and what would give one.

    Raises:
        LLMError: the name makes no sense.
    """
    if option:
        return connect(option), f"{option} (named by --model)"
    named = os.environ.get(VARIABLE)
    if named:
        return connect(named), f"{named} (named by {VARIABLE})"
    for key, model in _BY_KEY:
        if os.environ.get(key):
            return connect(model), f"{model} ({key} is set; --model names another)"
    keys = ", ".join(key for key, _ in _BY_KEY[:3])
    return None, f"no model: pass --model provider/name, or set {VARIABLE} or a key ({keys}, ...)"
