"""Stage `visible_context`: held-out bits per byte against how many tokens a prediction sees;
GPT-1's case for a Transformer is that it uses them. What is measured stands in
gpt_model/experiments/visible_context.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict
from assets.report import experiment


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json: a curve a source."""
    from gpt_model import convert
    from gpt_model.data.shards import TokenData
    from gpt_model.experiments.visible_context import gain, nats_by_context, positions
    from gpt_model.statistics import bits_per_byte_interval

    data = TokenData(inputs["tokens"].path)
    model = convert.load(inputs["pretrained"].path / "model").to(progress.profile.device).eval()
    contexts = _contexts(config["contexts"], model.config.context)
    series: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    said: list[str] = []
    sample: list[str] = []
    metrics: Metrics = {}
    for number, source in enumerate(data.sources):
        at = positions(data, source, contexts[-1], config["positions"], config["seed"])
        if len(at) < 2:
            progress.log(
                f"{source}: fewer than two held-out tokens have {contexts[-1]} before them; left out"
            )
            continue
        sizes = data.byte_lengths[data.tokens(source, "held_out")[:][at]].astype(int)
        nats = nats_by_context(model, data, source, at, contexts)
        curve = [bits_per_byte_interval(nats[:, column], sizes) for column in range(len(contexts))]
        ends = {
            name: [getattr(one, end) for one in curve]
            for name, end in (("y", "value"), ("low", "low"), ("high", "high"))
        }
        series.append({"label": source, "x": contexts, **ends})
        for column, k in enumerate(contexts):
            saved = gain(nats[:, column - 1], nats[:, column], sizes) if column else None
            rows.append([source, k, str(curve[column]), str(saved) if saved else "–", len(at)])
            metrics[f"{source}/{k}/bpb"] = curve[column].value
        whole = gain(nats[:, 0], nats[:, -1], sizes)
        metrics |= {
            f"{source}/gain": whole.value,
            f"{source}/gain_low": whole.low,
            f"{source}/gain_high": whole.high,
        }
        said.append(
            f"{source}: {contexts[-1]} tokens seen instead of {contexts[0]} save {whole} bits per byte, on {len(at)} tokens held out."
        )
        held_out = f"{len(data.tokens(source, 'held_out')):,} held out in {data.documents(source, 'held_out'):,} documents"
        sample.append(f"{source} {len(at):,} tokens of {held_out}")
        progress.advance(number + 1, len(data.sources), "sources")
    experiment.write(
        output,
        {
            "title": "Bits per byte against the visible context",
            "source": "GPT-1, section 1: a Transformer for its longer memory",
            "summary": said or ["No source has held-out text of that length."],
            "tables": [
                {
                    "caption": f"Predicted, the same for every context: {'; '.join(sample) or 'nothing'}. 95 % intervals over these tokens, each a "
                    "window of its own, taken for independent draws; of what is saved, paired. One model: what another seed of pre-training would "
                    "give is not in them.",
                    "columns": [
                        "source",
                        "tokens seen",
                        "bits per byte",
                        "saved against the one before",
                        "tokens predicted",
                    ],
                    "rows": rows,
                }
            ],
            "plots": [
                {
                    "title": "held-out bits per byte",
                    "x": "tokens seen",
                    "y": "bits per byte",
                    "log_x": True,
                    "series": series,
                }
            ]
            if series
            else [],
        },
    )
    return metrics


def _contexts(given: list[int] | None, longest: int) -> list[int]:
    """In order; where none are given the powers of two up to the model's own, and that."""
    powers = [2**power for power in range(longest.bit_length()) if 2**power <= longest]
    return sorted(given or {*powers, longest})


def _context_helps(built: Built) -> Verdict:
    """What the whole context saves, of every source interval and all."""
    gains = {
        name.removesuffix("_low"): low
        for name, low in built.metrics.items()
        if name.endswith("/gain_low")
    }
    said = ", ".join(
        f"{name.split('/')[0]} {built.metrics[name]:.3f} (at least {low:.3f})"
        for name, low in gains.items()
    )
    summary = f"Bits per byte saved by the whole context: {said or 'no source was measured'}."
    return Verdict(
        bool(gains) and min(gains.values()) > 0,
        summary,
        {name: built.metrics[name] for name in gains},
    )


VISIBLE_CONTEXT = Stage(
    name="visible_context",
    version="3",
    run=run,
    description="Held-out bits per byte of the pre-trained model against how many tokens before it a prediction sees.",
    kinds=("pytorch",),
    checks=(
        experiment.WHOLE,
        Check(
            "context_helps",
            False,
            "The whole context saves bits of every source, interval and all.",
            _context_helps,
        ),
    ),
    show=experiment.show,
    pool="training",
)
