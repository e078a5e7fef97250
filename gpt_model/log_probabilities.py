"""Log-probabilities of continuations: log π(continuation | prompt), each text read once.

What DPO, PPO's reference and the comparison of models score texts with. Texts lie packed one after
another (`gpt_model.ops.varlen`), and the head runs at the continuations' positions alone: full
logits never exist.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from gpt_model.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_by_row
from gpt_model.ops.varlen import PackedSequences
from gpt_model.training.batching import token_batches
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.shared_batches import results_of_items
from gpt_model.transformer import GPT


def predicting_positions(
    rows: PackedSequences, prompt_lengths: Tensor, continuations: Tensor
) -> Tensor:
    """The packed position of the state that predicts each continuation token.

    `prompt_lengths` [texts], tokens before the continuation; `continuations` [texts], its tokens.
    Returns [continuation tokens]; the token at `position + 1` is the one predicted.
    """
    ends = continuations.cumsum(0)
    total = int(ends[-1])
    # Of each text: the state that predicts its first token, less the tokens of texts before it
    first = rows.starts + prompt_lengths - 1 - (ends - continuations)
    by_token = first.repeat_interleave(continuations, output_size=total)
    return by_token + torch.arange(total, device=rows.starts.device)


def continuation_positions(rows: PackedSequences, continuations: Tensor) -> Tensor:
    """`predicting_positions` of continuations [texts] that end where their texts end."""
    lengths = torch.tensor(rows.lengths, device=continuations.device)
    return predicting_positions(rows, lengths - continuations, continuations)


@torch.no_grad()
def token_log_probabilities(
    model: GPT,
    rows: PackedSequences,
    positions: Tensor,
    temperature: float = 1.0,
    precision: str | None = None,
) -> Tensor:
    """Nats of the tokens after `positions` [tokens]: float32 [tokens].

    `precision`: "float32" or "bfloat16" of the decoder, with the head in float32; None for the
    caller's autocast. The model is used in the mode it is in.
    """
    device = model.wte.weight.device.type
    autocast = torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")
    with autocast if precision else nullcontext():
        states = model.states_of(rows)[positions].float() / temperature
    with torch.autocast(device, enabled=False) if precision else nullcontext():
        return -linear_cross_entropy_by_row(states, model.wte.weight, rows.tokens[positions + 1])


@torch.no_grad()
def continuation_log_probabilities(
    model: GPT,
    texts: Sequence[Sequence[int]],
    continuations: Sequence[int],
    temperature: float = 1.0,
    precision: str | None = None,
    execution: Execution = ALONE,
) -> list[float]:
    """log π(continuation | prompt) in nats of each text of tokens, whose last `continuations`
    tokens are the continuation. At a temperature: of what is sampled at it. Collective where there
    are several ranks.

    `precision`: of the decoder, None for that of the caller's autocast; the head's is float32.
    """

    def read(indices: Sequence[int]) -> list[float]:
        device = model.wte.weight.device
        callers = "bfloat16" if torch.is_autocast_enabled(device.type) else "float32"
        rows = PackedSequences.of([texts[index] for index in indices], device)
        lengths = torch.tensor([continuations[index] for index in indices], device=device)
        positions = continuation_positions(rows, lengths)
        by_token = token_log_probabilities(
            model, rows, positions, temperature, precision or callers
        )
        return [float(nats.sum()) for nats in by_token.double().split(lengths.tolist())]

    return results_of_items(read, token_batches([len(text) for text in texts]), execution, model)


def loss_of_log_probabilities(
    states: Tensor, weight: Tensor, targets: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """`loss` of the targets' log-probabilities, differentiable in states and head; and these
    log-probabilities, float32 [rows], without gradient.

    `states` [rows, width], `weight` [vocabulary, width], `targets` [rows]. Full logits never exist:
    d loss / d log-probabilities is taken first, and weighs each row's cross-entropy.
    """
    with torch.no_grad():
        log_probs = -linear_cross_entropy_by_row(states.float(), weight, targets)
    with torch.enable_grad():
        leaf = log_probs.clone().requires_grad_()
        value = loss(leaf)
        (slope,) = torch.autograd.grad(value, leaf)
    carrier = linear_cross_entropy(states, weight, targets, shares=-slope)
    return value.detach() + carrier - carrier.detach(), log_probs
