"""What the UI and MLflow show of a PPO training: curves batch by batch, final metrics, and the same
prompts answered on the way.
"""

from __future__ import annotations

import math
from itertools import groupby
from pathlib import Path
from statistics import median_high

from assets.contract import Built
from assets.report import plots
from assets.report.plots import Panel, Points
from assets.report.tables import Table, code_block, key_values, metric, write_markdown

PANELS = {
    "reward, mean of a batch": ("reward", "reward_with_penalty"),
    "KL to the reference, nats an answer": ("kl",),
    "entropy, nats a token": ("entropy",),
    "length, tokens an answer": ("length",),
    "share of clipped ratios, last minibatch of a batch": ("clip_fraction",),
    "value error, squared, last minibatch of a batch": ("value_error",),
    "explained variance of the values": ("explained_variance",),
    "coefficient of the KL penalty": ("kl_coefficient",),
}


def show(built: Built, folder: Path) -> None:
    """training.png, reward_kl.png, figures.md and samples.md."""
    panels = [Panel.of_series(title, built.series, names) for title, names in PANELS.items()]
    plots.curves(folder / "training.png", panels)
    with plots.picture(folder / "reward_kl.png", width=6, height=4) as axes:
        plots.line(axes, reward_by_kl(built))
        axes.set(
            xlabel="√KL to the reference, of a batch's mean (0 where the estimate is below 0)",
            ylabel="reward",
        )
    write_markdown(folder / "figures.md", metrics_table(built))
    if built.texts:
        write_markdown(folder / "samples.md", *_samples(built))


def reward_by_kl(built: Built) -> Points:
    """(√KL, reward) of each batch, as Bai et al. (2022) plot it: about a straight line while the
    reward model is to be trusted.
    """
    kl = dict(built.series.get("kl", ()))
    rewards = built.series.get("reward", ())
    return [(math.sqrt(max(0.0, kl[step])), reward) for step, reward in rewards if step in kl]


def metrics_table(built: Built) -> Table:
    metrics = built.metrics
    prompts = (metrics[f"prompts_{name}"] for name in ("training", "held_out", "left_out"))
    speeds = [speed for _, speed in built.series.get("episodes_per_second", ())]
    bits_per_byte = None
    if "bpb_rise" in metrics:
        after, before = metrics["held_out/total_bpb"], metrics["bpb_before"]
        bits_per_byte = f"{after:.3f}, {before:.3f} before ({metrics['bpb_rise']:+.1%})"
    values = {
        "episodes": f"{metrics['episodes']:,.0f} in {metrics['batches']:,.0f} batches",
        "reward on held-out prompts, before": metric(metrics, "reward_before"),
        "reward on held-out prompts, after": metric(metrics, "reward"),
        "gained, prompt by prompt": metric(metrics, "reward_gain"),
        "KL to the reference, nats an answer": metric(metrics, "kl"),
        "length, tokens, before": metric(metrics, "length_before", "z.1f"),
        "length, tokens, after": metric(metrics, "length", "z.1f"),
        "entropy, nats a token, before and after": (
            f"{metric(metrics, 'entropy_before')}, {metric(metrics, 'entropy')}"
        ),
        "answers that ended of themselves": f"{metrics['ended']:.0%}",
        "answers in training that say nothing": f"{metrics['empty_answers']:,.0f}",
        "answers in training whose reward is not a number": (
            f"{metrics['not_a_number_answers']:,.0f}"
        ),
        "prompts: answered, held out, too long": ", ".join(f"{count:,.0f}" for count in prompts),
        "held-out text, bits per byte": bits_per_byte,
        "episodes a second, generated and trained on": (
            f"{median_high(speeds):.1f} (median batch)" if speeds else None
        ),
        "peak memory of a rank": f"{metrics['peak_memory_bytes'] / 1e6:,.0f} MB",
    }
    note = (
        "In brackets: 95 % interval, prompts taken for independent. After: the moving average of "
        "the weights, which the artifact holds; the curves are of the policy on its way. The "
        "reward is the reward model's own, which the policy was trained to raise."
    )
    return key_values(values, note)


def _samples(built: Built) -> list[str]:
    """Each prompt with its answers in order."""
    parts = [
        "The same held-out prompts (in brackets), answered on the way, each time with the same "
        "seed."
    ]
    texts = sorted(built.texts, key=lambda text: (text[1], text[0], text[2]))
    for name, answers in groupby(texts, key=lambda text: text[1]):
        parts.append(f"## {name}")
        for step, _, answer in answers:
            parts += [f"After step {step}:", code_block(answer)]
    return parts
