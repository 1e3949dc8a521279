"""What `trace-opt doctor` looks at. Each check says what it found; none changes anything."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["ok", "note", "warning", "broken"]

KEYS = (
    "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "MISTRAL_API_KEY", "GROQ_API_KEY", "DEEPSEEK_API_KEY",
    "AZURE_API_KEY", "OPENROUTER_API_KEY",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found.

    Attributes:
        name: What was looked at.
        state: How it is; `note` is information, `broken` ends with an error code.
        said: What was found, in words.
        remedy: The command that mends it, or "".
    """

    name: str
    state: State
    said: str
    remedy: str = ""


def machine_checks(store: str | None) -> list[Check]:
    """Python, packages, models, keys, store and GPU of this machine."""
    return [_python(), *_packages(), *_models(), _optimizer_model(), _keys(os.environ), *_stores(store), _gpu()]


def problem_checks(file: str, options: Mapping[str, str]) -> list[Check]:
    """What recording cannot stand in for in a problem's workflow, and ops that hide others.

    Raises:
        ProblemError: the file offers no problem.
    """
    from trace_opt.cli.identity import findings, hiding
    from trace_opt.problem import load_problem

    workflow = load_problem(file, options).workflow
    found = [Check("workflow", "warning", str(finding)) for finding in findings(workflow)]
    found += [Check("workflow", "warning", line) for line in hiding(workflow)]
    return found or [
        Check("workflow", "ok", "no identity or exact-type tests on recorded values, no op that hides another")
    ]


def _python() -> Check:
    said = f"{platform.python_implementation()} {platform.python_version()} on {sys.platform}, {sys.executable}"
    return Check("python", "ok", said)


def _packages() -> Iterator[Check]:
    """Every requirement of the installed distribution: whether it is there and of a fitting version."""
    from importlib import metadata

    try:
        needed = metadata.requires("trace-opt-framework") or []
    except metadata.PackageNotFoundError:
        yield Check("packages", "warning", "trace-opt-framework is not installed, so its requirements are not known")
        return
    found: list[str] = []
    for text in needed:
        requirement, _, marker = text.partition(";")
        if "extra" in marker:
            continue
        name = re.split(r"[\s<>=!~\[(]", requirement.strip(), maxsplit=1)[0]
        problem = _unfit(requirement, marker.strip(), name)
        if problem:
            yield Check(f"package {name}", "broken", problem, f"pip install '{requirement.strip()}'")
        else:
            found.append(f"{name} {_version(name)}")
    yield Check("packages", "ok", ", ".join(found))


def _version(name: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(not for this platform)"


def _unfit(requirement: str, marker: str, name: str) -> str:
    """Why an installed package does not do, or ""."""
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError:
        return "" if marker or not _version(name).startswith("(") else "it is not installed"
    wanted = Requirement(f"{requirement}; {marker}" if marker else requirement)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return ""
    version = _version(name)
    if version.startswith("("):
        return "it is not installed"
    if not wanted.specifier.contains(version, prereleases=True):
        return f"version {version} does not fit {wanted.specifier}"
    return ""


def _models() -> Iterator[Check]:
    from trace_opt.llm.models import MODELS, path_of

    for name in MODELS:
        path = path_of(name)
        if path is None:
            said = "its weights are not on this machine"
            yield Check(f"model embedded/{name}", "warning", said, f"trace-opt models pull {name}")
        else:
            yield Check(f"model embedded/{name}", "ok", str(path))


def _optimizer_model() -> Check:
    from trace_opt.errors import LLMError
    from trace_opt.llm.choose import choose_model

    try:
        llm, why = choose_model()
    except LLMError as error:
        return Check("optimizer model", "broken", str(error))
    return Check("optimizer model", "ok" if llm is not None else "note", why)


def _keys(environment: Mapping[str, str]) -> Check:
    said = ", ".join(f"{key} {'yes' if environment.get(key) else 'no'}" for key in KEYS)
    return Check("keys", "note", said)


def _stores(where: str | None) -> Iterator[Check]:
    from trace_opt.cli.options import store_of
    from trace_opt.errors import StoreError

    try:
        store = store_of(where)
        there = store.database.exists
        runs = store.runs()
    except StoreError as error:
        yield Check("store", "broken", str(error))
        return
    if not there:
        folder = _nearest(store.database.file) if store.database.file is not None else None
        if folder is not None and not os.access(folder, os.W_OK):
            yield Check("store", "broken", f"{store.name} cannot be made: {folder} is not writable")
            return
        yield Check("store", "ok", f"{store.name} (not there yet; the first run makes it)")
        return
    yield Check("store", "ok", f"{store.name}, {len(runs)} runs")
    held = [run.id for run in runs if run.owner]
    if held:
        yield Check("running", "note", ", ".join(held))


def _nearest(file: Path) -> Path:
    """The nearest folder above a file that exists."""
    return next((folder for folder in file.absolute().parents if folder.exists()), Path())


def _gpu() -> Check:
    try:
        import torch
    except Exception as error:  # noqa: BLE001 # a broken torch raises anything from OSError to RuntimeError
        return Check("gpu", "broken", f"torch cannot be imported: {type(error).__name__}: {error}")
    probes: dict[str, Callable[[], bool]] = {
        "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available,
    }  # fmt: skip
    for name, available in probes.items():
        if available():
            device = torch.cuda.get_device_name(0) if name == "cuda" else "Apple GPU"
            return Check("gpu", "ok", f"{name}: {device}, torch {torch.__version__}")
    return Check("gpu", "note", f"none that torch {torch.__version__} can use; everything runs on the CPU")
