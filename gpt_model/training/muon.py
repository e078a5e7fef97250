"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): a matrix's momentum is made nearly
orthogonal, and that is its step. For the matrices of a decoder's blocks; embeddings (one of them is
the output head) and vectors are AdamW's.

- A step's size is 0.2 √max(rows, columns) times the learning rate (Liu et al. 2025, section 2.2,
  "Moonlight"), so that its mean square is about that of AdamW's: rates and decay chosen for AdamW
  do for Muon.
- Momentum is element by element, so it stays wherever ZeRO puts the element. Only to be made
  orthogonal is a matrix brought together, on one rank each, and its step goes back in pieces. So
  every ZeRO stage and number of ranks takes the same steps, up to rounding.
- DeepSpeed 0.19 has its own Muon. It clips the steps, of whatever norm, in place of the gradients
  at ZeRO 1 to 3, and takes our embeddings for matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from gpt_model.training.optimizer import FusedAdamW, ParameterSlice, TrainingSettings
from gpt_model.training.shared_memory import exchange_between

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan's quintic
UPDATE_RMS = 0.2  # of AdamW's steps, as Liu et al. measured them
# Matrices that stand side by side in a parameter [in, out], each made orthogonal by itself:
# queries, keys and values
SIDE_BY_SIDE = {"attn.c_attn.weight": 3}


def orthogonal(matrix: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """U Vᵀ of the matrix [rows, columns] U S Vᵀ, roughly, in `dtype`: after five iterations of
    Newton and Schulz singular values are 0.7 to 1.2, but for those that were next to nothing.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Muon(FusedAdamW):
    """Muon for the groups of parameters that have a "muon", their names; AdamW for the others.
    `step` is collective.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings) -> None:
        super().__init__(model, settings)
        assert settings.muon is not None
        self.settings = settings.muon
        # The precision of products, as in the forward pass
        self.dtype = torch.bfloat16 if settings.precision == "bfloat16" else torch.float32
        self._slices: dict[str, ParameterSlice] = {}  # of the matrices
        self._flats: set[int] = set()  # ids of the tensors that they lie in
        self._shapes: Mapping[str, torch.Size] = {}
        self._pieces: list[dict[str, tuple[int, int]]] = []  # of each rank: name -> start, length
        self._device = "cpu"
        self._through_memory: Callable[..., Tensor] | None = None

    def connect(
        self,
        slices: Sequence[ParameterSlice],
        shapes: Mapping[str, torch.Size],
        device: str,
        backend: Any,
    ) -> None:
        names = {name for group in self.param_groups for name in group.get("muon", ())}
        self._slices = {piece.name: piece for piece in slices if piece.name in names}
        self._flats = {id(piece.flat) for piece in self._slices.values()}
        self._shapes, self._device = shapes, device
        here = {name: (piece.start, piece.length) for name, piece in self._slices.items()}
        self._pieces = [here] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(self._pieces, here)
        largest = max((shapes[name].numel() for name in names), default=0)
        self._through_memory = exchange_between(backend, largest)

    def moments(self, flat: Tensor) -> dict[str, Tensor]:
        if id(flat) not in self._flats:
            return super().moments(flat)
        state: dict[str, Tensor] = self.state[flat]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(flat)
        return state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        groups, ranks = self.param_groups, len(self._pieces)
        for group in (group for group in groups if "muon" in group):
            names = self._stepped(group)
            for first in range(0, len(names), ranks):
                self._step_matrices(names[first : first + ranks], group)
        self.param_groups = [group for group in groups if "muon" not in group]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _stepped(self, group: Mapping[str, Any]) -> list[str]:
        """Those of the group's matrices that DeepSpeed steps now: at stage 3 it takes a part of the
        group at a time. The same on every rank; those of a size follow each other.
        """
        flats = {id(flat) for flat in group["params"]}
        # At stages 1 and 2, which take all at once, a rank has no slice of some
        names = [
            name
            for name in group["muon"]
            if name not in self._slices or id(self._slices[name].flat) in flats
        ]
        return sorted(names, key=lambda name: -self._shapes[name].numel())

    def _step_matrices(self, names: Sequence[str], group: Mapping[str, Any]) -> None:
        """Step this rank's slices of matrices, at most as many as there are ranks: the first is
        made orthogonal on rank 0, and so on.
        """
        rank, ranks = torch.distributed.get_rank(), range(len(self._pieces))
        matrices = [*names, *[None] * (len(ranks) - len(names))]  # of each rank
        mine = matrices[rank]
        whole = self._exchange(
            [
                self._momentum(name)[: self._given(name, rank, maker)]
                for maker, name in enumerate(matrices)
            ],
            [self._given(mine, giver, rank) for giver in ranks],
        )
        if mine:
            self._make_step(whole.view(self._shapes[mine]), mine)
        pieces = [self._piece(taker, mine) for taker in ranks]
        lengths = [self._piece(rank, name)[1] for name in matrices]
        steps = self._exchange([whole[start : start + length] for start, length in pieces], lengths)
        rate = group["lr"]
        for name, step in zip(matrices, steps.split(lengths), strict=True):
            if piece := self._slices.get(name or ""):
                weight = piece.of(piece.flat.data)
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(step.to(weight.device), alpha=-rate)

    def _piece(self, rank: int, name: str | None) -> tuple[int, int]:
        """Start and length of what a rank has of a matrix's elements."""
        return self._pieces[rank].get(name or "", (0, 0))

    def _given(self, name: str | None, giver: int, maker: int) -> int:
        """How many elements of its momentum a rank gives to the one that makes it orthogonal. At
        stage 0 that has all of them.
        """
        whole = name and self._piece(maker, name)[1] == self._shapes[name].numel()
        return 0 if whole and giver != maker else self._piece(giver, name)[1]

    def _momentum(self, name: str | None) -> Tensor:
        """A copy of this rank's part [length] of a matrix's momentum, the new gradient in it; with
        Nesterov, of where that leads.
        """
        if (piece := self._slices.get(name or "")) is None:
            return torch.empty(0, device=self._device)
        assert piece.flat.grad is not None
        gradient = piece.of(piece.flat.grad)
        momentum = piece.of(self.moments(piece.flat)["momentum_buffer"])
        momentum.lerp_(gradient, 1 - self.settings.momentum)
        look_ahead = self.settings.momentum if self.settings.nesterov else 1.0
        return gradient.lerp(momentum, look_ahead).to(self._device)

    def _make_step(self, matrix: Tensor, name: str) -> None:
        """Turn a whole momentum [in, out] into what the weight is stepped by, at a learning rate of
        1.
        """
        count = next((SIDE_BY_SIDE[end] for end in SIDE_BY_SIDE if name.endswith(end)), 1)
        for part in matrix.chunk(count, dim=1):
            part.copy_(orthogonal(part, self.settings.ns_steps, self.dtype))
            part.mul_(UPDATE_RMS * math.sqrt(max(part.shape)))

    def _exchange(self, parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """Give each rank its part [elements]; get so many elements of each, in the order of ranks:
        joined, the pieces that ranks hold of a matrix are the matrix. Collective.
        """
        if len(parts) == 1:
            return parts[0]
        if self._through_memory:
            return self._through_memory(parts, lengths)
        outgoing = torch.cat(list(parts))
        incoming = outgoing.new_empty(sum(lengths))
        torch.distributed.all_to_all_single(
            incoming, outgoing, list(lengths), [len(part) for part in parts]
        )
        return incoming
