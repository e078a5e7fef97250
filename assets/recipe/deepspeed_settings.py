"""Which of DeepSpeed's settings a profile may pass on: those that say where and when something lies
or travels, not what is learnt. Their values are DeepSpeed's to check, when ranks start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ZERO = "zero_optimization"
SECTIONS = (
    *(ZERO, "aio", "comms_logger", "flops_profiler"),
    *("wall_clock_breakdown", "memory_breakdown", "dump_state"),
)
# DeepSpeed 0.19, runtime/zero/config.py
ZERO_KEYS = (
    *("overlap_comm", "contiguous_gradients", "reduce_scatter", "allgather_partitions"),
    *("reduce_bucket_size", "allgather_bucket_size", "use_multi_rank_bucket_allreduce"),
    *("round_robin_gradients", "offload_optimizer", "offload_param", "sub_group_size"),
    *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_model_persistence_threshold", "stage3_max_live_parameters"),
    *("stage3_max_reuse_distance", "stage3_module_granularity_threshold"),
    *("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
    *("zero_hpz_partition_size", "memory_efficient_linear"),
)
# Key -> whose it is
OTHERS = {
    "optimizer": "the recipe's `pretraining.optimizer`",
    "scheduler": "the recipe's (`learning_rate`, `warmup_tokens`)",
    "gradient_clipping": "the recipe's `gradient_clip`",
    "train_batch_size": "the recipe's `batch_tokens`",
    "train_micro_batch_size_per_gpu": "the profile's `micro_batch`",
    "gradient_accumulation_steps": "what `batch_tokens`, `processes` and `micro_batch` leave",
    "bf16": "the recipe's `precision`",
    "fp16": "the recipe's `precision`, which has no float16",
    "torch_autocast": "the recipe's `precision` and the profile's `communication`",
    "communication_data_type": "the profile's `communication`",
    "activation_checkpointing": "the profile's key of that name, beside `deepspeed`",
    f"{ZERO}.stage": "the profile's `zero_stage`",
    f"{ZERO}.zero_quantized_weights": "none to set: quantized weights change what is learnt",
    f"{ZERO}.zero_quantized_nontrainable_weights": "none to set: they change what is learnt",
    f"{ZERO}.zero_quantized_gradients": "none to set: quantized gradients change what is learnt",
    f"{ZERO}.zenflow": "none to set: late updates change what is learnt",
}


def check_deepspeed(settings: Mapping[str, Any]) -> None:
    """Raises ValueError naming the first key that a profile does not pass on."""
    for key, value in settings.items():
        _check_key(key, SECTIONS)
        if key == ZERO:
            if not isinstance(value, Mapping):
                raise ValueError(f"`deepspeed.{ZERO}` is a mapping of DeepSpeed's keys")
            for inner in value:
                _check_key(f"{ZERO}.{inner}", tuple(f"{ZERO}.{each}" for each in ZERO_KEYS))
            for offload in ("offload_optimizer", "offload_param"):
                if (value.get(offload) or {}).get("device") == "nvme":
                    raise ValueError(
                        f"`deepspeed.{ZERO}.{offload}.device: nvme`: checkpoints are written out "
                        "of memory, so that what lies on a disk would be lost. Set `cpu`"
                    )


def _check_key(key: str, passed_on: tuple[str, ...]) -> None:
    if key in passed_on:
        return
    if key in OTHERS:
        raise ValueError(f"`deepspeed.{key}` is {OTHERS[key]}: leave it out")
    known = ", ".join(each.rpartition(".")[2] for each in passed_on)
    raise ValueError(f"`deepspeed.{key}` is none that a profile passes on, which are: {known}")
