"""A training state on disk, for stages that run by themselves; in a search the store keeps it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trace_opt.core.codec import decode, encode


def save(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write a state, all of it or nothing.

    Args:
        path: The file, as JSON with tensors and adapters exactly as they are.
        state: What a `state_dict` gave.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(encode(dict(state)), separators=(",", ":"), allow_nan=False), encoding="ascii")
    part.replace(file)


def load(path: str | Path) -> dict[str, Any] | None:
    """The state that `save` wrote; None where there is no file yet.

    Raises:
        ValueError: the file holds something else.
    """
    file = Path(path)
    if not file.exists():
        return None
    try:
        found = decode(json.loads(file.read_text(encoding="utf-8")))
        return {**found}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(file)!r} is no checkpoint ({error}); remove it, or give another path") from None
