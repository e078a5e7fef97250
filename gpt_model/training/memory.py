"""What training takes of a rank's memory. Arithmetic only, no torch: `plan` calls it.

The peak is the largest of four moments of a step (`moments`), each a sum of what is held then. All
is counted of the second of two micro-batches, beside whose activations gradients stand. With N
parameters, w = 4·N bytes of float32, r ranks:

**What stands all the time** (Rajbhandari et al. 2020, section 3.1, with float32 weights):

| ZeRO | weights | gradients | optimizer | bucket |
|---|---|---|---|---|
| 0 | w | w | 2·w: two moments | |
| 1 | w | w | 3·w/r: a flat copy of the share that is stepped, and its moments | |
| 2 | w | w/r | 3·w/r | |
| 3 | w/r | w/r | 3·w/r | B |

Ranks of CPUs on one host have one copy of the weights between them at 1 and 2: w/r each, and what
two of them collect gradients in stands all the time (`gpt_model.training.shared_memory`).

Of a parameter that shares cut through, ZeRO 2 has the whole gradient: at least the embedding's.
A bucket has the gradients that are sent at a time, B bytes (`bucket_elements`). DeepSpeed gives it
back after the exchange at stages 1 and 2, and never at 3.

**Forward pass.** Every block's activations (`activation_bytes`), or with checkpointing its input
alone. In bfloat16, a copy of each matrix of the blocks, which the backward pass needs: 2 bytes an
element. A checkpointed block's copies go with it, but for those that autocast keeps to the end of
the pass (operators of torch below ZeRO 3). Then the loss: the head's gradient in float32, a
chunk of logits, and in bfloat16 copies of the head and of a chunk's part of its gradient. At ZeRO
3, parameters that are gathered stay up to `LIVE_PARAMETERS`, whole and in float32, and those
gathered ahead, up to `PREFETCHED_PARAMETERS`, lie once more in the buffer that they came in.

**Backward pass.** What the forward pass left, less a chunk; and of one block the gradients of its
matrices and, with checkpointing, its activations and copies; on a CPU a large chunk too, which it
keeps for the next pass. On a GPU at the end come both
gradients of the embedding, as table and as head, before they are added.

**Exchange.** Activations are gone. A bucket is there, unless it is in what two ranks share, and a
copy of it as it is sent; at ZeRO 3 another, in which shares lie by rank.
Gradients that are not shared out lie in the bucket already. Where they are sent in bfloat16, a copy
is made in that.

**Optimizer.** The share's gradient as one tensor, beside its parts. At 1 and 2 before that, on a
GPU, a gradient in double precision, of which the norm is taken, beside all; and after it, over gloo
between hosts, a copy of the weights that are gathered.

`benchmarks/memory_plan.py` measures it on CPUs, with an allocator that gives back what is freed. A
worker's keeps it (`assets.launch.launcher.MALLOC`), and holes between blocks come on top.

On CUDA these are assumptions, as no GPU was at hand: two buckets, as their exchange overlaps the
backward pass; collectives without copies (NCCL); `CUDA_BYTES` for CUDA's context, NCCL's and
cuBLAS's buffers and what the compiler's kernels take; and torch's allocator to use `USABLE` of
what it holds. Attention scores are never stored there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpt_model.config import ModelConfig
from gpt_model.ops.sizes import (
    BANDED_QUERIES,
    BFLOAT16_CHUNK_BYTES,
    CHUNK_BYTES,
    GPU_CHUNK_BYTES,
    MAX_KEYS,
    QUERIES,
    SHARED_ELEMENTS,
)

FLOAT32 = 4
# DeepSpeed's defaults of `stage3_max_live_parameters` and `stage3_prefetch_bucket_size`
LIVE_PARAMETERS, PREFETCHED_PARAMETERS = 10**9, 5 * 10**7
ALL_REDUCED = 5 * 10**8  # elements that DeepSpeed sends at a time at stage 0
CUDA_BYTES = 1.5e9
# Of the largest matrix in Muon's step: momentum, brought together and by parts, and both sides of
# an iteration
MUON_COPIES = 6
# Of a GPU's memory: the rest is for what lies between torch's blocks
USABLE = 0.9


def bucket_elements(parameters: int, cuda: bool) -> int:
    """How many gradients are exchanged at a time, of a model of so many parameters: an eighth on
    GPUs, where two such buckets overlap the backward pass; all at once elsewhere. At most 0.8 GB or
    2 GB of float32.
    """
    bucket = min(500_000_000, parameters)
    if cuda:
        bucket = min(200_000_000, max(25_000_000, parameters // 8))
    return bucket + bucket % 2  # DeepSpeed cuts it in pieces of two


@dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as it bears on memory. `micro_batch`: sequences a rank and
    forward pass.
    """

    zero_stage: int
    ranks: int
    micro_batch: int
    checkpointing: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    communication: Literal["float32", "bfloat16"] = "float32"
    device: Literal["cpu", "cuda"] = "cpu"
    compile: bool = False
    muon: bool = False
    hosts: int = 1

    @property
    def factor_bytes(self) -> int:
        """Of an element of the products' factors."""
        return 2 if self.precision == "bfloat16" else FLOAT32


def memory_per_rank(model: ModelConfig, setting: Setting) -> float:
    """The most bytes that training takes of a rank's memory, its GPU's where it trains there, over
    what a process takes that has imported all and met the others.
    """
    peak = max(moments(model, setting).values())
    return peak / USABLE + CUDA_BYTES if setting.device == "cuda" else peak


def moments(model: ModelConfig, setting: Setting) -> dict[str, float]:
    """Bytes of a rank at each moment of a step: "forward", "backward", "exchange", "optimizer"."""
    weights, gradients, optimizer = _state(model, setting)
    standing = weights + gradients + optimizer + shared_bytes(model, setting)
    if setting.zero_stage == 3:
        standing += _buckets(model, setting)
    retained = _retained_chunk(model, setting)
    return {
        "forward": standing + _forward(model, setting),
        "backward": standing + retained + _backward(model, setting),
        "exchange": standing + retained + _exchange(model, setting),
        "optimizer": standing
        + retained
        + _step(model, setting)
        - (gradients if _flat(setting) else 0),
    }


def _state(model: ModelConfig, setting: Setting) -> tuple[float, float, float]:
    """Weights, gradients and the optimizer's state."""
    whole, stage = float(FLOAT32 * model.parameters()), setting.zero_stage
    share = whole / setting.ranks
    weights = share if stage == 3 or _holds_weights_once(setting) else whole
    gradients = {2: max(share, _table(model)), 3: share}.get(stage, whole)
    optimizer = 3 * share if stage else 2 * whole
    if setting.muon:  # one moment of the blocks' matrices, not two
        optimizer -= FLOAT32 * matrix_parameters(model) / (setting.ranks if stage else 1)
    return weights, gradients, optimizer


def _forward(model: ModelConfig, setting: Setting) -> float:
    live, ahead = _gathered(model, setting)
    head, chunk = _loss(model, setting)
    copies = _copies(model, setting)
    if setting.checkpointing:
        stored = model.layers * _layer_input(model, setting)
        if _fused(model, setting) or setting.compile or setting.zero_stage == 3:
            copies = 0
    else:
        stored = activation_bytes(model, setting)
    return live + stored + copies + max(ahead, head + chunk)


def _backward(model: ModelConfig, setting: Setting) -> float:
    live, _ = _gathered(model, setting)
    head, _ = _loss(model, setting)
    copies = _copies(model, setting)
    block = FLOAT32 * 12 * model.width**2 + _block_slopes(model, setting)
    stored = stored_bytes(model, setting)
    stored += copies / model.layers if setting.checkpointing else copies
    # A CPU takes a bucket's memory as it is filled: by the end with all but the embedding's
    filled = _buckets(model, setting) if _flat(setting) else 0
    first, last = head + stored + block, _table(model)
    if setting.device == "cuda":
        return live + filled + max(first, 2 * last)
    if setting.zero_stage == 2:
        last += min(filled, FLOAT32 * model.parameters() - _table(model))
    return live + max(first, last)


def _exchange(model: ModelConfig, setting: Setting) -> float:
    if setting.zero_stage == 0:
        return FLOAT32 * min(ALL_REDUCED, model.parameters())
    bucket = FLOAT32 * bucket_elements(model.parameters(), setting.device == "cuda")
    copies = bucket / 2 if _sends_bfloat16(setting) else 0.0
    if setting.zero_stage == 1:
        return copies + (0 if _collects_in_shared(model, setting) else bucket)
    if setting.zero_stage == 2:
        return copies + bucket + _buckets(model, setting)
    return copies + (1 if setting.device == "cuda" else 2) * _sent(model, setting)


def _step(model: ModelConfig, setting: Setting) -> float:
    """At stages 1 and 2 gradients are counted here."""
    share = FLOAT32 * model.parameters() / setting.ranks
    muon = MUON_COPIES * FLOAT32 * 4 * model.width**2 if setting.muon else 0
    if not _flat(setting):
        return muon + (share if setting.zero_stage == 3 else 0)
    _, gradients, _ = _state(model, setting)
    if _collects_in_shared(model, setting):
        return share + muon
    cuda = setting.device == "cuda"
    squares = 2 * min(_table(model), share) if cuda else 0
    over_gloo = not cuda and setting.ranks > 1 and not _holds_weights_once(setting)
    gathered = setting.ranks * share if over_gloo else 0
    return max(gradients + squares, 2 * share + muon, gathered)


def matrix_parameters(model: ModelConfig) -> int:
    """How many parameters Muon steps: the matrices of blocks, of which an LSTM has none."""
    return 0 if model.family == "lstm" else 12 * model.layers * model.width**2


def _flat(setting: Setting) -> bool:
    """Whether DeepSpeed's optimizer is that of stages 1 and 2."""
    return setting.zero_stage in (1, 2)


def _sends_bfloat16(setting: Setting) -> bool:
    return setting.precision == setting.communication == "bfloat16"


def _sent(model: ModelConfig, setting: Setting) -> float:
    """Bytes of a bucket as it is sent."""
    elements = bucket_elements(model.parameters(), setting.device == "cuda")
    return elements * (2 if _sends_bfloat16(setting) else FLOAT32)


def _on_one_host(setting: Setting) -> bool:
    """Whether ranks exchange through memory (`gpt_model.training.shared_memory`)."""
    several = setting.ranks > 1 and setting.hosts == 1
    return several and setting.device == "cpu" and setting.zero_stage < 3


def _holds_weights_once(setting: Setting) -> bool:
    return _on_one_host(setting) and _flat(setting)


def _collects_in_shared(model: ModelConfig, setting: Setting) -> bool:
    """Whether gradients are collected where both ranks read them."""
    two = _on_one_host(setting) and setting.ranks == 2 and not _sends_bfloat16(setting)
    return two and setting.zero_stage == 1 and model.parameters() <= SHARED_ELEMENTS


def shared_bytes(model: ModelConfig, setting: Setting) -> float:
    """A rank's part of the memory through which two ranks of one host sum gradients. The other maps
    it as well, which takes no more of the host's memory.
    """
    if not _on_one_host(setting) or setting.ranks != 2:
        return 0.0
    return FLOAT32 * min(SHARED_ELEMENTS, model.parameters())


def mapped_bytes(model: ModelConfig, setting: Setting) -> float:
    """What the other ranks' parts of shared memory add to a rank's resident memory."""
    others = setting.ranks - 1
    weights = FLOAT32 * model.parameters() / setting.ranks if _holds_weights_once(setting) else 0.0
    return others * (shared_bytes(model, setting) + weights)


def _buckets(model: ModelConfig, setting: Setting) -> float:
    """On CUDA two, and where gradients are sent in bfloat16, as many for those that are not."""
    sent = _sent(model, setting)
    if setting.device == "cpu":
        return (
            sent
            if setting.zero_stage == 3
            else FLOAT32 * bucket_elements(model.parameters(), False)
        )
    return 2 * (sent + (2 * sent if _sends_bfloat16(setting) else 0))


def _table(model: ModelConfig) -> float:
    """Of the embedding's gradient."""
    return FLOAT32 * model.vocab_size * model.width


def stored_bytes(model: ModelConfig, setting: Setting) -> float:
    """Bytes of activations when the backward pass of a block begins: of every block, or with
    checkpointing each one's input and that block's.
    """
    if not setting.checkpointing:
        return activation_bytes(model, setting)
    block = max(_block_bytes(model, setting, layer) for layer in range(min(2, model.layers)))
    return block + model.layers * _layer_input(model, setting)


def activation_bytes(model: ModelConfig, setting: Setting) -> float:
    """Bytes that the blocks store between forward and backward pass, without checkpointing.

    Of a token and block of width d: inputs of both norms, in float32; and in the precision of the
    factors, both norms' outputs, queries, keys and values, attention's output, and what goes into
    the GELU and comes out of it, 4·d each. On a CPU without dropout, where a token sees no more
    than MAX_KEYS (`gpt_model.ops.cpu_kernels`), queries, keys and values are in float32, and
    attention's weights are stored. With dropout: masks of two sums, in the factors' precision; and
    on a CPU attention's weights, their mask and what it leaves, in float32 and as factors.
    """
    return sum(_block_bytes(model, setting, layer) for layer in range(model.layers))


def _block_bytes(model: ModelConfig, setting: Setting, layer: int) -> float:
    width, factor, band = model.width, setting.factor_bytes, model.band_of(layer)
    tokens, heads = setting.micro_batch * model.context, model.heads
    keys = min(model.context, band or model.context)
    by_hand = _fused(model, setting, layer)
    each: float = 2 * FLOAT32 * width + 11 * factor * width
    each += 3 * (FLOAT32 if by_hand else factor) * width
    if by_hand:
        # Half of the keys are later than the query, but a block's queries have the same
        seen = keys / 2 + QUERIES / 2 if band is None else keys + BANDED_QUERIES / 2
        each += FLOAT32 * heads * min(seen, keys)
    elif model.dropout:
        each += 2 * factor * width
        if setting.device == "cpu":
            each += (3 * FLOAT32 + (factor if factor < FLOAT32 else 0)) * heads * model.context
    return tokens * each


def _fused(model: ModelConfig, setting: Setting, layer: int = 0) -> bool:
    """Whether the block is computed by `gpt_model.ops.cpu_kernels`."""
    keys = min(model.context, model.band_of(layer) or model.context)
    plain = setting.device == "cuda" or setting.compile or model.dropout > 0
    return not plain and keys <= MAX_KEYS


def _layer_input(model: ModelConfig, setting: Setting) -> float:
    return FLOAT32 * setting.micro_batch * model.context * model.width


def _block_slopes(model: ModelConfig, setting: Setting) -> float:
    """What the backward pass of a block's MLP holds besides: gradients of its output, its input and
    the norm's output in float32; of what is 4·d wide, and in bfloat16 of two copies, as factors.
    """
    factors = 6 if setting.precision == "bfloat16" else 4
    return (3 + factors * setting.factor_bytes / FLOAT32) * _layer_input(model, setting)


def _copies(model: ModelConfig, setting: Setting) -> float:
    """Of the blocks' matrices in the factors' precision."""
    return 2.0 * 12 * model.width**2 * model.layers if setting.precision == "bfloat16" else 0.0


def _loss(model: ModelConfig, setting: Setting) -> tuple[float, float]:
    """What the loss keeps, and what its largest chunk takes besides."""
    tokens, factor = setting.micro_batch * model.context, setting.factor_bytes
    table = model.vocab_size * model.width
    # The last norm's input and output in float32; states and their gradient as factors
    states = tokens * model.width * (2 * FLOAT32 + 2 * factor)
    # Of the head, and a chunk's part of its gradient
    copies = 2 * factor * table if factor < FLOAT32 else 0
    if setting.device == "cpu":
        return FLOAT32 * table + states, copies + _chunk(model, setting)
    rows = min(tokens, max(128, GPU_CHUNK_BYTES // (model.vocab_size * factor)))
    # logits and their gradient; where no compiler fuses them, four passes in float32
    passes = 2 * factor + (0 if setting.compile else 4 * FLOAT32)
    return FLOAT32 * table + states, 2 * factor * table + rows * model.vocab_size * passes


def _chunk(model: ModelConfig, setting: Setting) -> float:
    """Of a CPU's chunk of logits."""
    row = model.vocab_size * setting.factor_bytes
    most = BFLOAT16_CHUNK_BYTES if setting.precision == "bfloat16" else CHUNK_BYTES
    return row * min(setting.micro_batch * model.context, max(64, most // row))


def _retained_chunk(model: ModelConfig, setting: Setting) -> float:
    """What a CPU keeps of it from pass to pass (`gpt_model.ops.cross_entropy`)."""
    size = _chunk(model, setting) if setting.device == "cpu" else 0.0
    return size if size > CHUNK_BYTES else 0.0


def _gathered(model: ModelConfig, setting: Setting) -> tuple[float, float]:
    """At ZeRO 3: parameters that are whole at a time, and the buffer that others came in."""
    if setting.zero_stage < 3 or setting.ranks == 1:
        return 0.0, 0.0
    block, table = 12 * model.width**2, model.vocab_size * model.width
    live = min(model.parameters(), max(LIVE_PARAMETERS, block, table))
    sent = 2 if _sends_bfloat16(setting) else FLOAT32
    return FLOAT32 * live, sent * min(model.parameters(), PREFETCHED_PARAMETERS)
