"""The weights that a local model learned, as one immutable value: what a refiner changes and a search compares.

An adapter is the bytes of a safetensors file and is known by their sha256, so that equal weights are one value in every
candidate, store and process. What the tensors mean is the policy's business (refine/policy.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from torch import Tensor

_SETTINGS = "settings"


@final
class Adapter:
    """Learned weights as safetensors bytes.

    The empty adapter is nothing learned: a policy's initial weights, with which it says what its base model says. So a
    problem can be loaded, listed and compared without loading a model.

    Args:
        data: The content of a safetensors file, or nothing.

    Attributes:
        hash: Its sha256, in hex.
    """

    __slots__ = ("_data", "hash")

    _data: bytes | None
    hash: str

    def __init__(self, data: bytes = b"") -> None:
        object.__setattr__(self, "_data", bytes(data))
        object.__setattr__(self, "hash", hashlib.sha256(data).hexdigest())

    @classmethod
    def named(cls, sha256: str) -> Adapter:
        """An adapter without its bytes, as it stands in recordings: equal to the whole one."""
        made = cls.__new__(cls)
        object.__setattr__(made, "_data", None)
        object.__setattr__(made, "hash", sha256)
        return made

    @property
    def whole(self) -> bool:
        """Whether its bytes are here."""
        return self._data is not None

    @property
    def data(self) -> bytes:
        """The content of the safetensors file.

        Raises:
            ValueError: only its hash is here.
        """
        if self._data is None:
            raise ValueError(f"{self!r} is known by its hash only; take it from the values of the run's candidate")
        return self._data

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, float] | None = None) -> Adapter:
        """An adapter of tensors by name; the same tensors and settings always give the same bytes.

        Args:
            tensors: Of any shapes and dtypes, copied from whatever device they are on.
            settings: Numbers without which the tensors mean something else, such as the scale of their product.
        """
        from safetensors.torch import save

        plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
        # one entry: of several, safetensors writes them in any order
        said = {_SETTINGS: json.dumps(dict(settings), sort_keys=True)} if settings else None
        return cls(save(plain, metadata=said)) if plain else cls()

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU; none of the empty adapter.

        Raises:
            ValueError: the bytes are no safetensors file.
        """
        if not self.data:
            return {}
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.data)
        except SafetensorError as error:
            raise ValueError(f"{self!r} holds no safetensors ({error}); give Adapter.of(tensors)") from None

    @property
    def settings(self) -> dict[str, float]:
        """What `of` was told besides the tensors; nothing of files that others wrote.

        Raises:
            ValueError: the bytes are no safetensors file.
        """
        length = int.from_bytes(self.data[:8], "little")
        try:
            header: dict[str, Any] = json.loads(self.data[8 : 8 + length] or "{}")
            return json.loads(header.get("__metadata__", {}).get(_SETTINGS, "{}"))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{self!r} holds no safetensors ({error}); give Adapter.of(tensors)") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self!r} cannot be changed; make another Adapter")

    __delattr__ = __setattr__  # pyright: ignore[reportAssignmentType]

    def __bool__(self) -> bool:
        """Whether anything was learned."""
        return self != _EMPTY

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Adapter) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Adapter.named, (self.hash,)) if self._data is None else (Adapter, (self._data,))

    def __copy__(self) -> Adapter:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> Adapter:
        return self

    def __repr__(self) -> str:
        return f"Adapter({self.hash[:12]})"

    def __str__(self) -> str:
        return f"adapter {self.hash[:12]}"


_EMPTY = Adapter()
