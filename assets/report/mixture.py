"""The mixture that a model was trained on, as GPT-3's table 2.2 has it: each source's tokens,
weight, and how often it was gone through.
"""

from __future__ import annotations

from pathlib import Path

from assets.contract import Metrics


def table(tokens: Path, metrics: Metrics) -> str:
    """Markdown, from a tokens artifact's folder and a pretrained artifact's metrics."""
    from gpt_model.data.shards import TokenData

    data = TokenData(tokens)
    weights = sum(data.weights.values())
    lines = [
        f"| source | tokens | weight | epochs in {metrics['tokens']:,.0f} tokens |",
        "|---|--:|--:|--:|",
    ]
    for source in data.sources:
        held = len(data.tokens(source, "training"))
        lines.append(
            f"| {source} | {held:,} | {data.weights[source] / weights:.1%} | {metrics.get(f'epochs/{source}', 0.0):.2f} |"
        )
    notes = "Weight: of the tokens trained on. In an epoch of a source no window is drawn twice (Brown et al. 2020, table 2.2, appendix B)."
    return "\n".join([*lines, "", notes]) + "\n"
