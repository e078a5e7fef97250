"""Which of DeepSpeed's settings a profile may pass on, and the values they take: those that say
where and when something lies or travels, not what is learnt.

DeepSpeed's schema imports torch, so it is written out here: a wrong value is then reported when
the profile is read. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from gpt_model.strict import Misfit, explanation, shown

ZERO = "zero_optimization"
Elements = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


def _section(keys_by_kind: Mapping[Any, tuple[str, ...]]) -> type[BaseModel]:
    """What a mapping of DeepSpeed's may hold. Not strict: 5e8 is an integer to it."""
    fields: dict[str, Any] = {
        key: (kind, None) for kind, keys in keys_by_kind.items() for key in keys
    }
    return create_model("Section", __config__=ConfigDict(extra="forbid"), **fields)


OFFLOAD: dict[Any, tuple[str, ...]] = {
    Literal["none", "cpu", "nvme"]: ("device",),
    Path | None: ("nvme_path",),
}
OFFLOAD_PARAM = OFFLOAD | {
    bool: ("pin_memory",),
    Elements: ("buffer_count", "buffer_size", "max_in_cpu"),
}
OFFLOAD_OPTIMIZER = OFFLOAD | {
    bool: ("pin_memory", "pipeline_read", "pipeline_write", "fast_init", "super_offload"),
    Elements: ("buffer_count",),
    Share: ("ratio", "cpuadam_cores_perc"),
}
# DeepSpeed 0.19, runtime/zero/config.py
ZERO_KEYS: dict[Any, tuple[str, ...]] = {
    bool | None: ("overlap_comm",),
    bool: (
        *("contiguous_gradients", "reduce_scatter", "allgather_partitions"),
        *("use_multi_rank_bucket_allreduce", "round_robin_gradients", "memory_efficient_linear"),
        *("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
    ),
    Annotated[int, Field(gt=0)]: ("reduce_bucket_size",),
    Elements: (
        *("allgather_bucket_size", "sub_group_size", "zero_hpz_partition_size"),
        *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
        *("stage3_model_persistence_threshold", "stage3_max_live_parameters"),
        "stage3_max_reuse_distance",
    ),
    int: ("stage3_module_granularity_threshold",),
    _section(OFFLOAD_OPTIMIZER) | None: ("offload_optimizer",),
    _section(OFFLOAD_PARAM) | None: ("offload_param",),
}
# runtime/swap_tensor/aio_config.py, but for `use_gds`, which is of GPUs alone
AIO: dict[Any, tuple[str, ...]] = {
    Annotated[int, Field(gt=0)]: ("block_size", "queue_depth", "intra_op_parallelism"),
    bool: ("single_submit", "overlap_events"),
}
BUFFERS = {False: 4, True: 12}  # that AdamW's state needs, and with reading and writing ahead
OFFLOADS = ("offload_optimizer", "offload_param")
SWAPPED = 1 << 18  # elements of weights that lie on a disk: 1 MiB
READ_AHEAD = ("stage3_prefetch_bucket_size", "stage3_max_reuse_distance")
BUFFER_KEYS = ("buffer_count", "buffer_size")
COMMS_LOGGER: dict[Any, tuple[str, ...]] = {
    bool: ("enabled", "prof_all", "verbose", "debug"),
    list[Any]: ("prof_ops",),
}
FLOPS_PROFILER: dict[Any, tuple[str, ...]] = {
    bool: ("enabled", "detailed"),
    int: ("profile_step", "module_depth", "top_modules"),
    float: ("recompute_fwd_factor",),
    str | None: ("output_file",),
}
Zero = _section(ZERO_KEYS)
Settings = _section(
    {
        Zero: (ZERO,),
        _section(AIO): ("aio",),
        _section(COMMS_LOGGER): ("comms_logger",),
        _section(FLOPS_PROFILER): ("flops_profiler",),
        bool: ("wall_clock_breakdown", "memory_breakdown", "dump_state"),
    }
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
    """Raises ValueError naming the first key that a profile does not pass on, or else the first
    value that DeepSpeed does not take.
    """
    for key, value in settings.items():
        _check_key(key, Settings)
        if key == ZERO and isinstance(value, Mapping):
            for inner in value:
                _check_key(inner, Zero, f"{ZERO}.")
    try:
        Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        unknown = first["type"] == "extra_forbidden"
        problem = "it is no key of DeepSpeed's" if unknown else explanation(first)
        raise Misfit(
            f"{shown(first['input'])} is not what DeepSpeed takes: {problem}",
            ".".join(map(str, first["loc"])),
        ) from None
    zero = settings.get(ZERO) or {}
    for name in OFFLOADS:
        if _on_nvme(zero, name):
            _check_path(name, zero[name].get("nvme_path"))
    if _on_nvme(zero, "offload_optimizer"):
        _check_buffers(zero["offload_optimizer"])
    if _on_nvme(zero, "offload_param"):
        _check_weights_on_nvme(zero)


def _on_nvme(zero: Mapping[str, Any], name: str) -> bool:
    """Whether what `name`, of `OFFLOADS`, is of lies on a disk."""
    return (zero.get(name) or {}).get("device") == "nvme"


def _check_path(name: str, path: Any) -> None:
    if path is None or not Path(path).is_absolute():
        raise ValueError(
            f"`deepspeed.{ZERO}.{name}.device: nvme` needs `nvme_path`, the absolute path of a "
            f"folder on that disk, and it is {shown(path)}"
        )


def _check_buffers(offload: Mapping[str, Any]) -> None:
    ahead = bool(offload.get("pipeline_read") or offload.get("pipeline_write"))
    buffers = int(offload.get("buffer_count", BUFFERS[False]))
    if buffers < BUFFERS[ahead]:
        raise ValueError(
            f"`deepspeed.{ZERO}.offload_optimizer.buffer_count` is {buffers}, and "
            f"{BUFFERS[ahead]} are needed"
            + (", as a part is read or written while another one is stepped" if ahead else "")
        )


def _check_weights_on_nvme(zero: Mapping[str, Any]) -> None:
    """What makes DeepSpeed fail when it is to find weights on a disk."""
    threshold = int(zero.get("stage3_param_persistence_threshold") or 0)
    if threshold >= SWAPPED:
        raise ValueError(
            f"`deepspeed.{ZERO}.stage3_param_persistence_threshold` is {threshold}, and with "
            f"`offload_param.device: nvme` it has to be less than {SWAPPED}, as weights of so many "
            "elements lie on the disk"
        )
    given = [key for key in READ_AHEAD if zero.get(key)]
    given += [f"offload_param.{key}" for key in BUFFER_KEYS if key in zero["offload_param"]]
    if (zero.get("offload_optimizer") or {}).get("fast_init"):
        given.append("offload_optimizer.fast_init")
    if given:
        raise ValueError(
            f"`deepspeed.{ZERO}.{given[0]}` is none to set with `offload_param.device: nvme`: a "
            "block's weights are read when they are used, into buffers of the model's number and "
            "size. Leave it out"
        )


def _check_key(key: str, section: type[BaseModel], within: str = "") -> None:
    if key in section.model_fields:
        return
    if (name := f"{within}{key}") in OTHERS:
        raise ValueError(f"`deepspeed.{name}` is {OTHERS[name]}: leave it out")
    known = ", ".join(section.model_fields)
    raise ValueError(f"`deepspeed.{name}` is none that a profile passes on, which are: {known}")
