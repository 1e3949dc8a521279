"""What a file in agents/ or graphs/ offers, and how one is loaded by its path.

A file defines `problem`: a `Problem`, or a function with typed, defaulted keyword arguments that returns one. Files are
loaded by path under a name of their own, never as a package, so a folder called `agents` shadows nothing.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast

from trace_opt.core.feedback import Guide
from trace_opt.errors import ProblemError, TraceOptError, meant

if TYPE_CHECKING:
    from trace_opt.core.module import Module
    from trace_opt.core.parameter import Parameter
    from trace_opt.llm.base import LLM
    from trace_opt.optim.base import Optimizer
    from trace_opt.search.budget import Budget, Level
    from trace_opt.search.evaluate import Plan
    from trace_opt.search.greedy import Search
    from trace_opt.search.options import Options
    from trace_opt.search.run import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A workflow with what it takes to improve it. The fields are those of `optimize`.

    Attributes:
        workflow: Function of an example (bound by name where that is a mapping).
        train: Examples to learn from.
        guide: `(output, example) -> Feedback`.
        val, test: Examples to choose by and to judge by; split off `train` where left out.
        parameters: What may change: Parameters, a Module, or trainable ops for their source; by default what the start's
            rollouts reached.
        optimizers: Who proposes; by the kinds of the parameters by default.
        search: How candidates are tried; `Greedy()` by default.
        race: Names of choices whose combinations are all tried first.
        model: The optimizers' model, where the problem insists on one.
        budget, seed: Defaults.
        score_range: The lowest and the highest score possible.
        weights, margins: Of several scores by name (see `search.options.Options`).
        controls: Workflows by name that the best is compared with at the end (see `search.options.Options`).
        description: One line for people.
        name: Its name in the store; the file's by default.
        reload: Makes it again in another process; `load_problem` sets it.
    """

    workflow: Callable[..., Any]
    train: Sequence[Any]
    guide: Guide
    val: Sequence[Any] | None = None
    test: Sequence[Any] | None = None
    parameters: Module | Mapping[str, Parameter[Any]] | Sequence[Parameter[Any] | Callable[..., Any]] | None = None
    optimizers: Sequence[Optimizer] | None = None
    search: Search | None = None
    race: Sequence[str] = ()
    model: str | LLM | None = None
    budget: Budget | Level = "light"
    seed: int = 0
    score_range: tuple[float, float] | None = None
    weights: Mapping[str, float] | None = None
    margins: Mapping[str, float] | None = None
    controls: Mapping[str, Callable[..., Any]] | None = None
    description: str = ""
    name: str = ""
    reload: Callable[[], Any] | None = None

    def __post_init__(self) -> None:
        if self.parameters is not None:
            from trace_opt.core.trainable import listed

            object.__setattr__(self, "parameters", listed(self.parameters))

    def optimize(self, **overrides: Unpack[Options]) -> Run:
        """`trace_opt.optimize` on this problem; options given here win over its own."""
        from trace_opt.search.engine import optimize

        return optimize(self.workflow, self.train, self.guide, **self.options(**overrides))

    def plan(self, **overrides: Unpack[Options]) -> Plan:
        """What `optimize` would do, without doing it."""
        from trace_opt.search.evaluate import plan

        return plan(self.workflow, self.train, self.guide, **self.options(**overrides))

    def options(self, **overrides: Unpack[Options]) -> Options:
        """The options that `optimize` gets: the problem's own, then those given here."""
        own: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            if field.name not in ("workflow", "train", "guide", "description"):
                own[field.name] = getattr(self, field.name)
        if own["search"] is None:
            del own["search"]
        if overrides.get("resume"):
            # the run's own stand unless they are given anew
            del own["seed"], own["budget"]
        if not own["name"]:
            del own["name"]
        return cast("Options", own | overrides)


class OptionError(ProblemError):
    """An option given to a problem's function is unknown, or its text is no value of its type."""


@dataclass(frozen=True, slots=True)
class ProblemOption:
    """One typed, defaulted keyword argument of a file's `problem` function.

    Attributes:
        name: Its name, as in `--set name=value`.
        annotation: Its type.
        default: Its default.
        help: What the function's docstring says about it.
    """

    name: str
    annotation: Any
    default: Any
    help: str = ""


def load_problem(path: str | Path, options: Mapping[str, str] | None = None) -> Problem:
    """The problem that a file offers.

    Args:
        path: A Python file that defines `problem`.
        options: Texts from `--set name=value`, converted by the annotations of the file's `problem` function.

    Raises:
        ProblemError: the file is missing or fails to load, offers no problem, or an option is unknown or of the wrong
            type.
    """
    file = Path(path)
    made = _offered(file)
    if isinstance(made, Problem):
        if options:
            raise OptionError(
                f"{str(file)!r} takes no option {next(iter(options))!r}: its `problem` is no function; make it one with "
                "keyword arguments"
            )
        found: Any = made
    else:
        given = _converted(file, _options(file, made), options or {})
        found = _guarded(file, lambda: made(**given))
    if not isinstance(found, Problem):
        raise ProblemError(
            f"`problem` in {str(file)!r} gives {found!r:.60}, which is no Problem; return Problem(workflow=..., ...)"
        )
    reload = found.reload or functools.partial(load_problem, file.absolute(), dict(options or {}))
    return dataclasses.replace(found, name=found.name or file.stem, reload=reload)


def problem_options(path: str | Path) -> list[ProblemOption]:
    """The options that a file's `problem` takes; empty where it is a plain `Problem`.

    Raises:
        ProblemError: as for `load_problem`.
    """
    file = Path(path)
    made = _offered(file)
    return [] if isinstance(made, Problem) else _options(file, made)


def _offered(file: Path) -> Any:
    """What a file calls `problem`.

    Raises:
        ProblemError: there is no such file, it fails, or it has nothing of that name.
    """
    if file.is_dir():
        raise ProblemError(f"{str(file)!r} is a directory; give the path of a Python file that defines `problem`")
    if not file.is_file():
        near = [str(p) for p in sorted(file.parent.glob("*.py"))] if file.parent.is_dir() else []
        hint = meant(file, near, "give the path of a Python file that defines `problem`")
        raise ProblemError(f"there is no file {str(file)!r}; {hint}")
    spec = spec_from_file_location(f"trace_opt_problem_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ProblemError(f"{str(file)!r} is no Python file; give one that ends in .py")
    module = _guarded(file, lambda: _loaded(spec))
    if not hasattr(module, "problem"):
        near_names = difflib.get_close_matches("problem", [n for n in dir(module) if not n.startswith("_")], 1)
        hint = f"did you mean to call {near_names[0]!r} so?" if near_names else "add `problem = Problem(...)` to it"
        raise ProblemError(f"{str(file)!r} defines no `problem`; {hint}")
    made: Any = module.problem
    if not isinstance(made, Problem) and not callable(made):
        raise ProblemError(
            f"`problem` in {str(file)!r} is {made!r:.60}; make it a Problem or a function that returns one"
        )
    return made


def _loaded(spec: ModuleSpec) -> types.ModuleType:
    module = module_from_spec(spec)
    # dataclasses and pydantic look their module up by name
    sys.modules[spec.name] = module
    try:
        if spec.loader is not None:
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def _guarded(file: Path, run: Callable[[], Any]) -> Any:
    """What a file's own code gives; what it raises, in one sentence, the exception as its cause."""
    try:
        return run()
    except TraceOptError:
        raise
    except SystemExit as error:
        raise ProblemError(
            f"{str(file)!r} ended the program while it was loaded (sys.exit({error.code!r})); put what runs it as a script "
            'under `if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        raise ProblemError(f"{str(file)!r} cannot be loaded ({type(error).__name__}: {error})") from error


# -- options -----------------------------------------------------------------------------------------------------------


def _options(file: Path, made: Any) -> list[ProblemOption]:
    try:
        hints = typing.get_type_hints(made)
    except NameError:  # a name that only type checkers see
        hints = dict(getattr(made, "__annotations__", {}))
    helps = _argument_help(inspect.getdoc(made) or "")
    found: list[ProblemOption] = []
    for parameter in inspect.signature(made).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.default is parameter.empty:
            raise ProblemError(
                f"`problem` in {str(file)!r} has an argument {parameter.name!r} without a default; give it one"
            )
        annotation = hints.get(parameter.name, type(parameter.default))
        found.append(ProblemOption(parameter.name, annotation, parameter.default, helps.get(parameter.name, "")))
    return found


def _argument_help(doc: str) -> dict[str, str]:
    """What a google docstring says about each argument."""
    found: dict[str, str] = {}
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    for line in section.group(1).splitlines() if section else ():
        entry = re.match(r"^ {4}(\w+)(?: \(.*?\))?: (.*)$", line)
        if entry:
            found[entry.group(1)] = entry.group(2)
        elif found and line.strip():
            found[list(found)[-1]] += " " + line.strip()
    return found


def _converted(file: Path, known: Sequence[ProblemOption], given: Mapping[str, str]) -> dict[str, Any]:
    by_name = {option.name: option for option in known}
    values: dict[str, Any] = {}
    for name, text in given.items():
        if name not in by_name:
            listed = f"known: {', '.join(by_name)}" if by_name else "it takes none"
            raise OptionError(f"{str(file)!r} has no option {name!r}; {meant(name, by_name, listed)}")
        values[name] = _value(by_name[name], text)
    return values


_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _value(option: ProblemOption, text: str) -> Any:
    """A text as an option's type; nothing is guessed.

    Raises:
        ProblemError: it is no such value.
    """
    for kind in _kinds(option.annotation):
        converted = _one(kind, text)
        if converted is not _NONE_SUCH:
            return converted
    wanted = " or ".join(_kind_name(kind) for kind in _kinds(option.annotation))
    raise OptionError(
        f"option {option.name!r} got {text!r:.60}; give {wanted}, as in --set {option.name}={option.default}"
    )


_NONE_SUCH: Any = object()


def _kinds(annotation: Any) -> list[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        # texts last: everything is a text
        return sorted((k for part in typing.get_args(annotation) for k in _kinds(part)), key=lambda kind: kind is str)
    return [annotation]


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(kind))
    names: dict[Any, str] = {
        int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "none", Path: "a path",
    }  # fmt: skip
    return names.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _one(kind: Any, text: str) -> Any:
    if kind is str or kind is inspect.Parameter.empty:
        return text
    if kind is bool:
        return _TRUTHS.get(text.strip().lower(), _NONE_SUCH)
    if kind is type(None):
        return None if text.strip().lower() in ("none", "null", "") else _NONE_SUCH
    if typing.get_origin(kind) is Literal:
        return next((choice for choice in typing.get_args(kind) if str(choice) == text), _NONE_SUCH)
    if kind in (int, float, Path):
        try:
            return kind(text.strip())
        except ValueError:
            return _NONE_SUCH
    return _parsed(kind, text)


def _parsed(kind: Any, text: str) -> Any:
    """A text as any other type: JSON that fits it, without conversion."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text)
    except ValidationError:
        return _NONE_SUCH
