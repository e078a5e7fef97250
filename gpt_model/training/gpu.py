"""A rank's GPU: held against what the profile says of it, chosen, and its data sheet's peak.

Raises sentences for people where the GPU is missing, is smaller than promised, or lacks a precision
or a driver. Nothing here is called on a CPU.
"""

from __future__ import annotations

import os
import re
import socket

import torch

from gpt_model.errors import UserError

# Pattern of a device's name -> 10^12 FLOP/s of dense bfloat16 products that add up in float32:
# NVIDIA's data sheets, half of what they give "with sparsity" (of the L40S they print both, 362.05
# and 733). The B200's was read where others quote NVIDIA, the RTX 4090's in the white paper on the
# Ada architecture. The first pattern that matches counts. A variant that is slower than its
# namesake and has no line (H200 NVL) is not known.
DATA_SHEET_TFLOPS = {
    r"\bB200\b": 2250.0,
    r"\bH100 NVL\b": 835.0,
    r"\bH100 PCIe\b": 756.0,
    r"\b(H100|H200(?! NVL)|GH200)\b": 989.0,
    r"\bA100\b": 312.0,
    r"\bL40S\b": 362.0,
    r"\bA10\b": 125.0,
    r"\bRTX 4090$": 165.2,
}
# A GPU's memory is some per cent off the number that it is sold by
MEMORY_TOLERANCE = 0.05
AMPERE = 8  # the compute capability from which on there are bfloat16 and TF32


def data_sheet_flops(device: str) -> float | None:
    """FLOP/s of bfloat16 products by the data sheet of a device of that name; None: not known."""
    matches = (flops for name, flops in DATA_SHEET_TFLOPS.items() if re.search(name, device))
    return next((flops * 1e12 for flops in matches), None)


def choose(memory_bytes: float | None, tf32: bool) -> None:
    """Take this rank's GPU, by LOCAL_RANK. `memory_bytes`: what the profile says that it has.

    Raises UserError where there is none, or less memory than 95 % of that, or no TF32 as asked for.
    """
    index, host = _index(), socket.gethostname()
    _require_driver(host)
    if (count := torch.cuda.device_count()) <= index:
        raise UserError(
            f"Rank {os.environ.get('RANK', '0')} needs GPU {index} of {host}, which shows "
            f"{count} GPUs. Set `processes` to {count} for each host in the profile, or see "
            "CUDA_VISIBLE_DEVICES.",
            field="processes",
        )
    device = torch.cuda.get_device_properties(index)
    if memory_bytes and device.total_memory < (1 - MEMORY_TOLERANCE) * memory_bytes:
        raise UserError(
            f"GPU {index} of {host}, {device.name}, has {device.total_memory / 1e9:.0f} GB; the "
            f"profile says memory_gb: {memory_bytes / 1e9:g}. Write what it has: `plan` then says "
            "what fits.",
            field="memory_gb",
        )
    use()
    require_precision("float32", tf32)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")


def use() -> None:
    """Make this rank's GPU the current one of the calling thread: a new thread has the first."""
    torch.cuda.set_device(_index())


def _index() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _require_driver(host: str) -> None:
    """Raises UserError where torch cannot use any GPU of this machine."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        if "driver" in reason and "too old" in reason:
            advice = "Update the driver, or install a torch for an older CUDA."
        elif "driver" in reason:
            advice = "Install NVIDIA's driver, or choose a profile with `device: cpu`."
        elif "not compiled with CUDA" in reason:
            advice = "Install torch with CUDA: https://pytorch.org/get-started/locally."
        else:
            advice = "See what `nvidia-smi` says, or choose a profile with `device: cpu`."
        raise UserError(
            f"The profile says `device: cuda`, and torch {torch.__version__} can use no GPU of "
            f"{host}: {reason.rstrip('.')}. {advice}",
            field="device",
        ) from None


def require_precision(precision: str, tf32: bool) -> None:
    """Raises UserError where the chosen GPU computes neither in bfloat16 nor TF32, and one is asked
    for.
    """
    device = torch.cuda.get_device_properties(torch.cuda.current_device())
    if device.major >= AMPERE or not (precision == "bfloat16" or tf32):
        return
    what = "`precision: bfloat16`" if precision == "bfloat16" else "`tf32: true`"
    where = "recipe" if precision == "bfloat16" else "profile"
    raise UserError(
        f"{device.name} has compute capability {device.major}.{device.minor}; {what} of the "
        f"{where} needs {AMPERE}.0 (A100, RTX 30 or newer). Set `precision: float32` without tf32, "
        "or choose a newer GPU.",
        field="precision" if precision == "bfloat16" else "tf32",
    )
