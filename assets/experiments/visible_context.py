"""Stage `visible_context`: held-out bits per byte against how many tokens a prediction sees; GPT-1's case for a Transformer is that it uses
them. What is measured stands in gpt_model/experiments/visible_context.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from assets import experiment_page
from assets.contract import Built, Check, Config, Inputs, Metrics, Progress, Stage, Verdict


def run(config: Config, inputs: Inputs, output: Path, progress: Progress) -> Metrics:
    """Write experiment.json: a curve a source."""
    from gpt_model import convert
    from gpt_model.data.shards import TokenData
    from gpt_model.experiments.visible_context import bits_per_byte, gain, nats_by_context, positions

    data = TokenData(inputs["tokens"].path)
    model = convert.load(inputs["pretrained"].path / "model").to(progress.profile.device).eval()
    contexts = _contexts(config["contexts"], model.config.context)
    series: list[dict[str, Any]] = []
    rows: list[list[Any]] = []
    metrics: Metrics = {}
    for number, source in enumerate(data.sources):
        at = positions(data, source, contexts[-1], config["positions"], config["seed"])
        if len(at) < 2:
            progress.log(f"{source}: fewer than two held-out tokens have {contexts[-1]} before them; left out")
            continue
        sizes = data.byte_lengths[data.tokens(source, "held_out")[:][at]].astype(int)
        nats = nats_by_context(model, data, source, at, contexts)
        curve = [bits_per_byte(nats[:, column], sizes) for column in range(len(contexts))]
        value, low, high = (list(part) for part in zip(*curve, strict=True))
        series.append({"label": source, "x": contexts, "y": value, "low": low, "high": high})
        for column, k in enumerate(contexts):
            saved = gain(nats[:, column - 1], nats[:, column], sizes) if column else None
            rows.append([source, k, _interval(curve[column]), _interval(saved) if saved else "–", len(at)])
            metrics[f"{source}/{k}/bpb"] = curve[column][0]
        half = gain(nats[:, -2], nats[:, -1], sizes) if len(contexts) > 1 else (0.0, 0.0, 0.0)
        metrics |= {f"{source}/last_gain": half[0], f"{source}/last_gain_low": half[1], f"{source}/last_gain_high": half[2]}
        progress.advance(number + 1, len(data.sources), "sources")
    experiment_page.write(output, {
        "title": "Bits per byte against the visible context",
        "source": "GPT-1, section 1: a Transformer for its longer memory",
        "summary": [_sentence(one, contexts) for one in series],
        "tables": [{
            "caption": "Held-out tokens of each source, the same for every context; 95 % intervals, of the gain paired.",
            "columns": ["source", "tokens seen", "bits per byte", "saved against the one before", "tokens predicted"],
            "rows": rows,
        }],
        "plots": [{
            "title": "held-out bits per byte", "x": "tokens seen", "y": "bits per byte", "log_x": True, "series": series, "levels": [],
        }],
    })  # fmt: skip
    return metrics


def _contexts(given: list[int] | None, longest: int) -> list[int]:
    """In order; none beyond the model's own."""
    powers = [2**power for power in range(longest.bit_length()) if 2**power <= longest]
    return sorted({min(k, longest) for k in given or [*powers, longest]})


def _interval(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"


def _sentence(one: dict[str, Any], contexts: list[int]) -> str:
    return f"{one['label']}: {one['y'][0]:.3f} bits per byte from {contexts[0]} token, {one['y'][-1]:.3f} from {contexts[-1]}."


def _context_helps(built: Built) -> Verdict:
    """From the shortest to the longest context the bits per byte of every source fall."""
    sources = sorted({name.split("/")[0] for name in built.metrics if name.endswith("/bpb")})
    drops = {}
    for source in sources:
        by_context = {
            int(name.split("/")[1]): v for name, v in built.metrics.items() if name.startswith(f"{source}/") and name.endswith("/bpb")
        }
        drops[source] = by_context[min(by_context)] - by_context[max(by_context)]
    said = ", ".join(f"{source} {drop:+.3f}" for source, drop in drops.items())
    return Verdict(
        bool(drops) and min(drops.values()) > 0, f"Bits per byte saved by the whole context: {said or 'no source was measured'}.", drops
    )


VISIBLE_CONTEXT = Stage(
    name="visible_context",
    version="1",
    run=run,
    description="Held-out bits per byte of the pre-trained model against how many tokens before it a prediction sees.",
    kinds=("pytorch",),
    checks=(
        experiment_page.WHOLE,
        Check("context_helps", False, "With the whole context each source takes fewer bits than with the shortest.", _context_helps),
    ),
    show=experiment_page.show,
    pool="training",
)
