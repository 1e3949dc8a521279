"""Optimizers whose states take one byte a number: blocks of 256 values, each scaled by its largest, on a non-linear scale.

They save memory, not time, and follow the full rule to about a percent of the way; tensors under `min_8bit_size`
elements keep 32 bits.

Source: T. Dettmers et al., "8-bit optimizers via block-wise quantization", arXiv 2110.02861; by bitsandbytes.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any

from trace_opt.errors import ProblemError


def optimizer_class(name: str) -> Any:
    """A class of `bitsandbytes.optim`, "AdamW8bit" or "Lion8bit".

    Raises:
        ProblemError: bitsandbytes is not installed.
    """
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of kernels for 4-bit weights, which are not used here
    try:
        module = importlib.import_module("bitsandbytes.optim")
    except ImportError as error:
        raise ProblemError(
            f"{name!r} needs bitsandbytes, which is not installed; install the extra 'quantized'"
        ) from error
    finally:
        logger.setLevel(level)
    return getattr(module, name)
