"""Sizes of what the kernels hold, for those that count memory too. No torch."""

from __future__ import annotations

# Of logits in a chunk: enough rows for an efficient matrix product, few enough for a CPU's last
# cache.
CHUNK_BYTES = 1 << 24
# Where each chunk's part of the head's gradient comes in bfloat16, to be added up in float32
BFLOAT16_CHUNK_BYTES = 1 << 25
GPU_CHUNK_BYTES = 1 << 28
GPU_VOCABULARY = 128  # a GPU's head has a multiple of so many rows
# Queries in a block: what lies beyond the diagonal block is never computed. With a band each block
# has keys beside it that few of its queries see, so blocks are smaller.
QUERIES, BANDED_QUERIES = 128, 64
SHARED_ELEMENTS = 1 << 24  # of what a rank shares with those of its host; more go in parts
# Tokens that a query sees. Beyond it the saved attention weights take more memory than they save
# time.
MAX_KEYS = 512
