"""The instant problem of engine.py and gepa_steps.py: texts by number, scores of 0 and 1 by content."""

from zlib import crc32


def text(number: int) -> str:
    """The prompt that a proposal of this number makes."""
    return f"prompt {number}"


def score(output: str) -> float:
    """0 or 1, equally often: no prompt is better than another."""
    return float(crc32(output.encode()) >> 16 & 1)
