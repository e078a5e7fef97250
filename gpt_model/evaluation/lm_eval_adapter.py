"""Our GPT behind lm_eval's LM class: log-likelihoods, rolling log-likelihoods, generation. Which
tasks there are, and their scores, are not here.

The adapter answers every request as lm_eval's Hugging Face backend (lm_eval/models/huggingface.py,
0.4.13) does for the same checkpoint: it encodes whole strings and then divides them, spaces at a
context's end belong to the answer, a long context loses its left end, and end-of-text stands before
a text without a context. It computes less:

- The model reads a context once for all its answers. They continue from copies of its keys and
  values, answers of one length side by side.
- The first token of every answer is scored from that one pass, so answers of one token are free.
- The output head runs at the scored positions only.
- A batch is so many tokens of requests of like length, not so many requests.
- Several ranks share the batches out, and the requests to encode; a batch is the same for any
  number of them.

It counts what it cuts (`GPTLM.cuts`), and where a context's last token and an answer's first would
be one token, it encodes the two apart rather than give the answer nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from gpt_model.errors import UserError
from gpt_model.evaluation.few_shot import generation_limit
from gpt_model.generation import generate
from gpt_model.ops.conv1d import output_head, prepacked
from gpt_model.progress import Progress, Silent
from gpt_model.tokenizer import Tokenizer
from gpt_model.training.batching import (
    ENCODED_ROWS,
    LM_EVAL_TOKENS,
    chunks,
    consecutive_batches,
    token_batches,
)
from gpt_model.training.engine import ALONE, Execution
from gpt_model.training.sharded import is_sharded, reading
from gpt_model.training.shared_batches import SharedBatches
from gpt_model.transformer import GPT

LOGITS = 1 << 22  # logits in memory at once
PASS_TOKENS = 64  # tokens that take about as long as a pass's fixed cost

Result = TypeVar("Result")
Score = tuple[float, bool]  # log-probability in nats; whether greedy decoding gives exactly this
_Answer = tuple[int, int, list[int]]  # row of its context, request number, ids
Request = tuple[Any, list[int], list[int]]  # (both as text, ids of context, ids of continuation)


@dataclass
class _Context:
    """A context as the model reads it, and the answers that follow it."""

    ids: list[int]
    answers: list[tuple[int, list[int]]]  # (request number, ids)

    @property
    def longest(self) -> int:
        """Tokens of its longest answer that the model must read: all but the last."""
        return max(len(ids) for _, ids in self.answers) - 1


@dataclass
class _Batch:
    """What one forward pass, or the writing of some texts, is of."""

    compute: Callable[..., Any]  # a method of GPTLM, or called as one
    arguments: tuple[Any, ...]
    requests: int


class GPTLM(TemplateLM):
    """A GPT and its tokenizer as an lm_eval model. `batch_tokens`: tokens, padding included, in one
    forward pass. lm_eval runs on rank 0, of several within `shared.leading()`.

    `cuts`: task's name -> example's number -> tokens by which its context was cut to fit, of those
    that were.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
        execution: Execution = ALONE,
    ) -> None:
        super().__init__()
        self.shared: SharedBatches[_Batch, Any] = SharedBatches(self._computed, execution)
        self.model = model.eval()
        self.tokenizer = tokenizer
        sharded = is_sharded(model)
        self._device = torch.device(execution.device) if sharded else model.wte.weight.device
        self.batch_tokens = batch_tokens or LM_EVAL_TOKENS.get(
            self._device.type, LM_EVAL_TOKENS["cpu"]
        )
        self.progress = progress or Silent()
        self.cuts: dict[str, dict[int, int]] = {}
        self._excess: list[int] = []  # tokens that the last log-likelihoods' contexts lost

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.end_of_text

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of `string`, as a document of the corpus has them: `<|endoftext|>` spelt out in it is
        text. (`transformers` reads the one token.)
        """
        return self.tokenizer.encode(string)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:
        """(log-probability, is greedy) of each request's continuation after its context."""
        pairs = [request.args for request in requests]
        encoded = self._by_row(GPTLM._encode_request, pairs)
        scores = self._loglikelihood_tokens(
            [(pair, *ids) for pair, ids in zip(pairs, encoded, strict=True)]
        )
        self._count_cuts(requests, self._excess)
        return scores

    def _encode_request(self, pair: tuple[str, str]) -> tuple[list[int], list[int]]:
        """As lm_eval's `TemplateLM.loglikelihood` encodes context and continuation."""
        context, continuation = pair
        if context:
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(continuation)
        if ids[:1] == [self.prefix_token_id]:
            return ids[:1], ids[1:]
        return [self.prefix_token_id], ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, answer = super()._encode_pair(context, continuation)
        if not answer and continuation:
            before, answer = self.tok_encode(context), self.tok_encode(continuation)
        return before or [self.prefix_token_id], answer  # a context of spaces is the answer's

    def _count_cuts(self, requests: Sequence[Instance], excess: Sequence[int]) -> None:
        for request, tokens in zip(requests, excess, strict=True):
            number = getattr(request, "doc_id", None)  # none of a request that is no example's
            if tokens > 0 and number is not None:
                of_task = self.cuts.setdefault(str(request.task_name), {})
                of_task[number] = max(tokens, of_task.get(number, 0))

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-probability of each whole text: disjoint windows of the model's context, the first
        after end-of-text.
        """
        windows: list[Request] = []
        owners: list[int] = []
        texts = [request.args[0] for request in requests]
        for number, ids in enumerate(self._by_row(GPTLM.tok_encode, texts)):
            for window in get_rolling_token_windows(
                ids, self.prefix_token_id, self.model.config.context, context_len=1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += logprob
        return totals

    @torch.no_grad()
    def _computed(self, batches: Sequence[_Batch]) -> Generator[Any, None, None]:
        # Left with the last batch, before the ranks exchange results
        with reading(self.model), prepacked(self.model, self.model.wte):
            for batch in batches:
                yield batch.compute(self, *batch.arguments)

    def call_all(self, calls: Sequence[Callable[[], Result]]) -> list[Result]:
        """What each of `calls` returns, by the ranks together: work beside the model's."""
        return self._by_row(_call, calls, together=1)

    def _by_row(
        self,
        compute: Callable[[GPTLM, Any], Result],
        rows: Sequence[Any],
        together: int = ENCODED_ROWS,
    ) -> list[Result]:
        """`compute` of each row, by the ranks together, so many rows at a time."""
        batches = [
            _Batch(_each, (compute, rows[chunk.start : chunk.stop]), len(chunk))
            for chunk in chunks(len(rows), together)
        ]
        return list(itertools.chain.from_iterable(self.shared.results(batches)))

    def _results(self, batches: Sequence[_Batch], total: int, unit: str) -> list[Any]:
        """The result of each batch, by the ranks together."""
        done = 0

        def advance(batch: _Batch) -> None:
            nonlocal done
            done += batch.requests
            self.progress.advance(done, total, unit)

        return self.shared.results(batches, advance)

    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[Score]:
        context_length = self.model.config.context
        self._excess = [
            len(before) + len(answer) - context_length - 1 for _, before, answer in requests
        ]
        scores: list[Score | None] = [None] * len(requests)
        batches = list(self._batches(_contexts(requests, context_length)))
        for scored in self._results(batches, len(requests), "answers"):
            for number, score in scored:
                scores[number] = score
        return [score for score in scores if score is not None]

    def _batches(self, contexts: list[_Context]) -> Iterator[_Batch]:
        """Batches whose results are (request number, score) of each answer. A context with one
        answer is read together with it; the others once for all their answers.
        """
        single = [context for context in contexts if len(context.answers) == 1]
        shared = sorted(
            (context for context in contexts if len(context.answers) > 1),
            key=lambda context: (-len(context.ids), context.ids),
        )
        lengths = [len(context.ids) + context.longest for context in single]
        for indices in token_batches(lengths, self.batch_tokens, order="given", padded=True):
            yield _Batch(GPTLM._score_single, ([single[index] for index in indices],), len(indices))
        for batch in consecutive_batches(
            shared, lambda batch: self._cost_shared(batch) <= self.batch_tokens
        ):
            answers = sum(len(context.answers) for context in batch)
            yield _Batch(GPTLM._score_shared, (batch,), answers)

    @staticmethod
    def _cost_shared(batch: Sequence[_Context]) -> float:
        """Tokens of the contexts, or a quarter of the cache's room where that is more."""
        length, answer_length = _longest(batch)
        return len(batch) * max(length, (length + answer_length) / 4)

    def _score_single(self, batch: Sequence[_Context]) -> list[tuple[int, Score]]:
        rows = [context.ids + context.answers[0][1][:-1] for context in batch]
        states = self.model.hidden(self._padded(rows))  # [batch, time, width]
        spans = [
            (row, len(context.ids) - 1, context.answers[0][1]) for row, context in enumerate(batch)
        ]
        numbers = [context.answers[0][0] for context in batch]
        return list(zip(numbers, self._score_spans(states, spans), strict=True))

    def _score_shared(self, batch: Sequence[_Context]) -> list[tuple[int, Score]]:
        length, answer_length = _longest(batch)
        lengths = torch.tensor([len(context.ids) for context in batch], device=self._device)
        contexts = self._padded([context.ids for context in batch])
        if answer_length:
            cache = self.model.new_cache(len(batch), length + answer_length)
            states = self.model.hidden(contexts, cache, lengths)  # [batch, time, width]
        else:  # every answer is one token: nothing is read after the context
            states = self.model.hidden(contexts)
        answers = [
            (row, number, ids)
            for row, context in enumerate(batch)
            for number, ids in context.answers
        ]
        first = self._score_spans(
            states, [(row, len(batch[row].ids) - 1, ids[:1]) for row, _, ids in answers]
        )
        scores = {number: score for (_, number, _), score in zip(answers, first, strict=True)}
        for group in _of_like_length(
            [answer for answer in answers if len(answer[2]) > 1],
            4 * self.batch_tokens // (length + answer_length),
        ):
            capacity = max(len(batch[row].ids) for row, _, _ in group) + len(group[0][2]) - 1
            copies = cache.rows(
                torch.tensor([row for row, _, _ in group], device=self._device), capacity
            )
            states = self.model.hidden(self._padded([ids[:-1] for _, _, ids in group]), copies)
            rest = self._score_spans(
                states, [(row, 0, ids[1:]) for row, (_, _, ids) in enumerate(group)]
            )
            for (_, number, _), (logprob, greedy) in zip(group, rest, strict=True):
                scores[number] = (scores[number][0] + logprob, scores[number][1] and greedy)
        return list(scores.items())

    def _padded(self, rows: Sequence[list[int]]) -> Tensor:
        """Token ids [batch, longest], zeros on the right, which no other token attends to."""
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self._device)

    def _score_spans(
        self, states: Tensor, spans: Sequence[tuple[int, int, list[int]]]
    ) -> list[Score]:
        """The score of each (row, first position, ids). `states` [batch, time, width]: the state at
        row, first + k predicts ids[k].
        """
        rows = torch.tensor([row for row, _, ids in spans for _ in ids], device=states.device)
        positions = torch.tensor(
            [first + k for _, first, ids in spans for k in range(len(ids))], device=states.device
        )
        targets = torch.tensor(
            [token for _, _, ids in spans for token in ids], device=states.device
        )
        logprobs = torch.empty(len(targets), dtype=torch.float64)
        greedy = torch.empty(len(targets), dtype=torch.bool)
        weight = self.model.wte.weight
        step = max(1, LOGITS // weight.shape[0])
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            logits = output_head(states[rows[part], positions[part]], weight).float()
            logprobs[part] = (
                -F.cross_entropy(logits, targets[part], reduction="none").double().cpu()
            )
            greedy[part] = (logits.argmax(-1) == targets[part]).cpu()
        counts = [len(ids) for _, _, ids in spans]
        pieces = zip(logprobs.split(counts), greedy.split(counts), strict=True)
        return [(float(logprob.sum()), bool(same.all())) for logprob, same in pieces]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Text after each context, up to the task's stop strings or its `max_gen_toks`. Greedy
        unless the task samples.
        """
        by_settings: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            by_settings.setdefault(repr(sorted(request.args[1].items())), []).append(number)
        batches: list[_Batch] = []
        owners: list[int] = []  # the request of each text that the batches give
        for numbers in by_settings.values():
            given = requests[numbers[0]].args[1]
            settings = dict(normalize_gen_kwargs(dict(given)))
            _, settings["max_gen_toks"] = generation_limit(given, self.model.config.context)
            room = self.model.config.context - settings["max_gen_toks"]
            encoded = self._by_row(
                GPTLM._context_ids, [requests[number].args[0] for number in numbers]
            )
            self._count_cuts(
                [requests[number] for number in numbers], [len(ids) - room for ids in encoded]
            )
            contexts = {n: ids[-room:] for n, ids in zip(numbers, encoded, strict=True)}
            numbers = sorted(numbers, key=lambda number: (-len(contexts[number]), contexts[number]))
            owners += numbers
            rows = max(1, self.batch_tokens // self.model.config.context)
            for start in range(0, len(numbers), rows):
                prompts = [contexts[number] for number in numbers[start : start + rows]]
                batches.append(_Batch(GPTLM._generated, (prompts, settings), len(prompts)))
        texts = [""] * len(requests)
        results = self._results(batches, len(requests), "generated answers")
        for number, text in zip(owners, itertools.chain.from_iterable(results), strict=True):
            texts[number] = text
        return texts

    def _context_ids(self, context: str) -> list[int]:
        return self.tok_encode(context) or [self.prefix_token_id]

    def _generated(self, contexts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        stop = handle_stop_sequences(
            settings.get("until"), eos=self.tokenizer.decode([self.eot_token_id])
        )
        sampled = bool(settings.get("do_sample"))
        if suppressed := settings.get("begin_suppress_tokens"):
            return [
                postprocess_generated_text(text, stop, None)
                for text in self._generated_suppressing(suppressed, contexts, settings)
            ]
        generated = generate(
            self.model,
            contexts,
            settings["max_gen_toks"],
            temperature=float(settings.get("temperature") or 1.0) if sampled else 0.0,
            top_k=settings.get("top_k") if sampled else None,
            top_p=settings.get("top_p") if sampled else None,
            # `generate` drops the token in which a stop string ends, and with it the text before
            # the string. Shown all tokens but the newest it ends one token later and loses nothing.
            stop=[self.eot_token_id, *stop],
            decode=lambda ids: self.tokenizer.decode(ids[:-1]),
        )
        return [
            postprocess_generated_text(self.tokenizer.decode(ids), stop, None) for ids in generated
        ]

    @torch.no_grad()
    def _generated_suppressing(
        self, suppressed: list[int], contexts: list[list[int]], settings: dict[str, Any]
    ) -> list[str]:
        """Greedy texts whose first token is none of `suppressed`; later tokens may be:
        `transformers`' begin_suppress_tokens.
        """
        if settings.get("do_sample"):
            raise UserError(
                "begin_suppress_tokens goes with greedy decoding here. Take do_sample out of the "
                "suite's generation_kwargs."
            )
        lengths = torch.tensor([len(context) for context in contexts], device=self._device)
        states = self.model.hidden(self._padded(contexts))[
            torch.arange(len(contexts), device=self._device), lengths - 1
        ]  # [batch, width]
        logits = F.linear(states, self.model.wte.weight).float()
        logits[:, suppressed] = -torch.inf
        begun_contexts = [
            [*context, token]
            for context, token in zip(contexts, logits.argmax(-1).tolist(), strict=True)
        ]
        rest = generate(
            self.model,
            begun_contexts,
            settings["max_gen_toks"] - 1,
            temperature=0.0,
            stop=[self.eot_token_id],
        )
        return [
            ""
            if context[-1] == self.eot_token_id
            else self.tokenizer.decode([context[-1], *continuation])
            for context, continuation in zip(begun_contexts, rest, strict=True)
        ]


def _each(lm: GPTLM, compute: Callable[[GPTLM, Any], Result], rows: Sequence[Any]) -> list[Result]:
    return [compute(lm, row) for row in rows]


def _call(lm: GPTLM, call: Callable[[], Result]) -> Result:
    return call()


def _longest(batch: Sequence[_Context]) -> tuple[int, int]:
    """Tokens of the longest context, and of the longest answer without its last token."""
    return max(len(context.ids) for context in batch), max(context.longest for context in batch)


def _contexts(requests: Iterable[Request], context_length: int) -> list[_Context]:
    """The different contexts among `requests`, cut from the left to what fits with each answer;
    longest first, ties by their ids.
    """
    contexts: dict[tuple[int, ...], _Context] = {}
    for number, (text, before, answer) in enumerate(requests):
        if not before or not answer:
            raise UserError(
                f"A question has an empty answer: {text!r:.300}. Mend the suite's data."
            )
        if len(answer) > context_length:
            raise UserError(
                f"An answer has {len(answer)} tokens, and the model's context is "
                f"{context_length}: {text!r:.300}. Mend the suite's data."
            )
        ids = (before + answer)[-(context_length + 1) : -len(answer)]
        contexts.setdefault(tuple(ids), _Context(ids, [])).answers.append((number, answer))
    return sorted(
        contexts.values(), key=lambda context: (-len(context.ids) - context.longest, context.ids)
    )


def _of_like_length(answers: list[_Answer], limit: int) -> Iterator[list[_Answer]]:
    """Groups of at most `limit` answers, the longest first, whose padding costs no more than a pass
    does.
    """

    def fits(group: Sequence[_Answer]) -> bool:
        padding = sum(len(group[0][2]) - len(answer[2]) for answer in group)
        return len(group) <= limit and padding <= PASS_TOKENS

    return consecutive_batches(sorted(answers, key=lambda answer: -len(answer[2])), fits)
