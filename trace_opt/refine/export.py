"""An adapter as a file that llama.cpp serves beside the GGUF file of its base model.

`connect("embedded/smollm2+reflector.gguf")` answers with it, several times faster than transformers does on a CPU.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trace_opt.errors import LLMError

if TYPE_CHECKING:
    from torch import Tensor

    from trace_opt.core.adapter import Adapter
    from trace_opt.refine.policy import TrainablePolicy

_TENSOR = re.compile(r"\.layers\.(\d+)\.\w+\.(\w+)\.lora_([AB])\.weight$")
_NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


def export_adapter(policy: TrainablePolicy, path: str | Path, adapter: Adapter | None = None) -> Path:
    """Write an adapter as a LoRA in GGUF, in float32.

    Args:
        policy: The policy that it belongs to, whose model is of the Llama architecture.
        path: The file to write; it appears whole or not at all.
        adapter: Which one; by default the value of its parameter, `policy.adapter`.

    Returns:
        The path.

    Raises:
        LLMError: the model is of another architecture.
        ValueError: the adapter does not fit the policy.
    """
    import gguf

    path = Path(path)
    config: Any = policy.model.config
    if config.model_type != "llama":
        raise LLMError(
            f"the adapter of a {config.model_type!r} model is not exported to GGUF; convert it with llama.cpp's own script",
            kind="model",
        )
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, "llama")
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, policy.alpha)
    with policy.lock:
        weights = policy.lora.tensors(policy.adapter.value if adapter is None else adapter)
    for name, weight in sorted(weights.items()):  # the same adapter, the same bytes
        found = _TENSOR.search(name)
        assert found is not None, name  # noqa: S101 # the adapter fits the policy
        layer, projection, side = found.groups()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(projection)
        # llama.cpp keeps the two halves of a head, which rotary embeddings turn together, side by side
        kept = _interleaved(weight, heads) if side == "B" and heads is not None else weight
        writer.add_tensor(f"blk.{layer}.{_NAMES[projection]}.weight.lora_{side.lower()}", kept.float().cpu().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)
    return path


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """The output rows of each head reordered from (first half, second half) to pairs."""
    rows, rank = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, rank).swapaxes(1, 2).reshape(rows, rank).contiguous()
