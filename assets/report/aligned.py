"""What the UI and MLflow show of a PPO: curves batch by batch, figures, and the same prompts
answered on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from assets.contract import Built

PANELS = (
    ("reward, mean of a batch", ("reward", "reward_with_penalty")),
    ("KL to the reference, nats an answer", ("kl",)),
    ("entropy, nats a token", ("entropy",)),
    ("length, tokens an answer", ("length",)),
    ("share of clipped ratios, last minibatch of a batch", ("clip_fraction",)),
    ("value error, squared, last minibatch of a batch", ("value_error",)),
    ("explained variance of the values", ("explained_variance",)),
    ("coefficient of the KL penalty", ("kl_coefficient",)),
)

PROMPTS = ("training", "held_out", "left_out")


def show(built: Built, folder: Path) -> None:
    """training.png, reward_kl.png, figures.md and samples.md."""
    _curves(built.series, folder / "training.png")
    _reward_against_kl(built.series, folder / "reward_kl.png")
    (folder / "figures.md").write_text(_figures(built), encoding="utf-8")
    if built.texts:
        (folder / "samples.md").write_text(_samples(built), encoding="utf-8")


def _curves(series: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 12), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(4, 2).flat, PANELS, strict=True):
        for name in names:
            points = series.get(name, ())
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                label=name,
                marker="." if len(points) < 30 else None,
            )
        axes.set_title(title)
        axes.set_xlabel("optimizer steps")
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    figure.savefig(path, dpi=90)


def _reward_against_kl(series: Mapping[str, Sequence[tuple[int, float]]], path: Path) -> None:
    """Reward over √KL, as Bai et al. (2022) plot it: about a straight line while the reward model
    is to be trusted.
    """
    from matplotlib.figure import Figure

    kl = dict(series.get("kl", ()))
    points = [
        (math.sqrt(max(0.0, kl[step])), value)
        for step, value in series.get("reward", ())
        if step in kl
    ]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([x for x, _ in points], [y for _, y in points], marker=".")
    axes.set_xlabel("√KL to the reference, of a batch's mean (0 where the estimate is below 0)")
    axes.set_ylabel("reward")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=90)


def _figures(built: Built) -> str:
    m = built.metrics

    def value(name: str, places: int = 3) -> str:
        ends = (
            f" ({m[f'{name}_low']:.{places}f} to {m[f'{name}_high']:.{places}f})"
            if f"{name}_low" in m
            else ""
        )
        return f"{m[name]:.{places}f}{ends}" if name in m else "–"

    rows = [
        ("episodes", f"{m['episodes']:,.0f} in {m['batches']:,.0f} batches"),
        ("reward on held-out prompts, before", value("reward_before")),
        ("reward on held-out prompts, after", value("reward")),
        ("gained, prompt by prompt", value("reward_gain")),
        ("KL to the reference, nats an answer", value("kl")),
        ("length, tokens, before", value("length_before", 1)),
        ("length, tokens, after", value("length", 1)),
        (
            "entropy, nats a token, before and after",
            f"{value('entropy_before')}, {value('entropy')}",
        ),
        ("answers that ended of themselves", f"{m['ended']:.0%}"),
        ("answers in training that say nothing", f"{m['empty_answers']:,.0f}"),
        ("answers in training whose reward is not a number", f"{m['not_a_number_answers']:,.0f}"),
        (
            "prompts: answered, held out, too long",
            ", ".join(f"{m[f'prompts_{name}']:,.0f}" for name in PROMPTS),
        ),
    ]
    if "bpb_rise" in m:
        rows.append(
            (
                "held-out text, bits per byte",
                f"{m['held_out/total_bpb']:.3f}, {m['bpb_before']:.3f} before ({m['bpb_rise']:+.1%})",
            )
        )
    if speeds := [one for _, one in built.series.get("episodes_per_second", ())]:
        rows.append(
            (
                "episodes a second, made and learnt from",
                f"{sorted(speeds)[len(speeds) // 2]:.1f} (median batch)",
            )
        )
    rows.append(("peak memory of a rank", f"{m['peak_memory_bytes'] / 1e6:,.0f} MB"))
    table = "| figure | value |\n|---|---|\n" + "".join(
        f"| {name} | {text} |\n" for name, text in rows
    )
    return (
        f"{table}\nIn brackets: 95 % interval, prompts taken for independent. After: the moving average of the weights, which is what is "
        "kept; the curves are of the policy on its way. The reward is the reward model's own, which the policy was trained to raise.\n"
    )


def _samples(built: Built) -> str:
    """Each prompt with its answers in order."""
    names = sorted({name for _, name, _ in built.texts})
    parts = [
        "The same held-out prompts (in brackets), answered on the way, each time with the same seed.\n"
    ]
    for name in names:
        parts.append(f"## {name}\n")
        parts += [
            f"After step {step}:\n\n```text\n{text}\n```\n"
            for step, own, text in sorted(built.texts)
            if own == name
        ]
    return "\n".join(parts)
