"""What Dagster and MLflow show of each training of InstructGPT's steps: curves, accuracies, and
answers to held-out prompts. The comparison of the models is `preferences.py`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median_high
from typing import Any

from assets.contract import Built, Metrics
from assets.report import plots
from assets.report.plots import Panel, Points, curves
from assets.report.tables import (
    Table,
    code_block,
    interval,
    key_values,
    last_texts,
    markdown,
    metric,
    not_resampled_note,
    write_markdown,
)
from assets.stages.alignment import BAG_OF_WORDS, HELD_OUT_FILE, JUDGE_FILE, NO_WORDS, TRAINING_FILE
from assets.stages.base_model import READ_ON
from gpt_model.bag_of_words import BagOfWords
from gpt_model.io import read_json_lines
from gpt_model.rlhf.ranking_agreement import calibration


def show_sft(built: Built, folder: Path) -> None:
    """tuning.png and samples.md."""
    curves(folder / "tuning.png", sft_panels(built.series))
    heading = "Held-out prompts, answered after the last epoch."
    write_markdown(folder / "samples.md", heading, last_texts(built.texts))


def sft_panels(series: Mapping[str, Sequence[tuple[int, float]]]) -> list[Panel]:
    """Losses, that of pre-training text where some is mixed in, and the learning rate."""
    losses = {
        "training": series.get("nats", ()),
        "held out, after each epoch": series.get("held_out/loss", ()),
    }
    result = [Panel("nats a token of the assistant's", "step", losses)]
    if "text_nats" in series:
        text = {"training": series["text_nats"]}
        result.append(Panel("nats a token of pre-training text", "step", text))
    rate = {"learning rate": series.get("learning_rate", ())}
    return [*result, Panel("learning rate", "step", rate)]


# label -> series
REWARDS = {"mean": "reward", "interval, low": "reward_low", "interval, high": "reward_high"}


def show_sft_selection(built: Built, folder: Path) -> None:
    """epochs.png, epochs.md and samples.md."""
    series = built.series
    rewards = {label: series.get(name, ()) for label, name in REWARDS.items()}
    losses = {"nats a token": series.get("held_out_loss", ())}
    curves(
        folder / "epochs.png",
        [
            Panel("reward on held-out prompts", "epoch", rewards),
            Panel("loss on held-out demonstrations", "epoch", losses),
        ],
    )
    facts = json.loads((built.output / TRAINING_FILE).read_text(encoding="utf-8"))
    write_markdown(folder / "epochs.md", epochs_table(facts))
    if built.texts:
        heading = "Answers of the last epoch to held-out prompts."
        write_markdown(folder / "samples.md", heading, last_texts(built.texts))


def epochs_table(facts: Mapping[str, Any]) -> Table:
    """Reward and held-out loss of every epoch, from training.json."""
    rows = [
        {
            "epoch": f"{row['epoch']}{' (kept)' * (row['epoch'] == facts['best_epoch'])}",
            "reward (95 % interval)": interval(*(row[name] for name in REWARDS.values())),
            "held-out loss": row.get("held_out_loss"),
            "tokens": row["length"],
            "ended": row["ended"],
            "say nothing": row["empty"],
        }
        for row in facts["epochs"]
    ]
    note = (
        f"{facts['prompts']} held-out prompts, the same for every epoch. The best mean reward is "
        "kept; loss has no say in it. "
    )
    note += (
        "Models are compared on none of them."
        if facts["apart"]
        else f"Models are compared on the same ones, as there are only {facts['left']} others: the "
        "figures of this epoch there, by the judge too, are a little too good."
    )
    formats = {"held-out loss": ".3f", "tokens": ".1f", "ended": ".0%"}
    return Table(rows, note=note, formats=formats)


COMPARISONS = "/comparisons"  # how the count of a source's pairs ends


def show_reward_model(built: Built, folder: Path) -> None:
    """figures.md, calibration.png and training.png."""
    models = {"": "reward model", BAG_OF_WORDS: "bag of words"}
    write_markdown(folder / "figures.md", accuracies(built.metrics, models))
    if rows := read_json_lines(built.output / HELD_OUT_FILE):
        _plot_calibration(rows, folder / "calibration.png")
    panels = {
        "loss of a step": ("loss",),
        "accuracy": ("training_accuracy", "held_out/accuracy"),
        "held-out log loss": ("held_out/log_loss",),
        "better minus worse, training": ("margin",),
    }
    plots.curves(
        folder / "training.png",
        [Panel.of_series(title, built.series, names) for title, names in panels.items()],
    )


def accuracies(metrics: Metrics, models: Mapping[str, str]) -> str:
    """Accuracies of each of `models` (prefix of its metrics -> title), over all and by source, and
    what was left out; as Markdown.
    """
    sources = sorted(
        key.removesuffix(COMPARISONS)
        for key in metrics
        if key.endswith(COMPARISONS) and key not in ("training/comparisons", "held_out/comparisons")
    )

    def accuracy(model: str, source: str) -> str:
        return metric(metrics, "/".join(filter(None, (model, source, "accuracy"))))

    rows = [
        {
            "accuracy on held-out comparisons": source or "all",
            "comparisons": int(metrics.get(f"{source}{COMPARISONS}".lstrip("/"), 0)),
            **{title: accuracy(model, source) for model, title in models.items()},
        }
        for source in ("", *sources)
    ]
    note = (
        "In brackets: 95 % interval, bootstrap over prompts, whose pairs share responses. Where "
        "single texts are ranked under one instruction, no text is in two rankings, and these are "
        "drawn again."
    )
    note += not_resampled_note(cell for row in rows for cell in row.values())
    return markdown(Table(rows, note=note), _trained_on(metrics), *_notes(metrics))


def _trained_on(metrics: Metrics) -> str:
    def left_out(reason: str) -> str:
        return f"{int(metrics[f'training/{reason}'] + metrics[f'held_out/{reason}']):,}"

    return (
        f"Trained on {int(metrics['training/comparisons']):,} comparisons in "
        f"{int(metrics['training/rankings']):,} rankings; left out {left_out('without_pairs')} "
        "rankings without a better and a worse response, "
        f"{left_out('too_long')} responses longer than the context, and {left_out('lost')} "
        "rankings that compare nothing without these."
    )


def _notes(metrics: Metrics) -> list[str]:
    notes = []
    if f"{BAG_OF_WORDS}/not_run" in metrics:
        notes.append(f"Bag of words: not run, as {NO_WORDS}.")
    if "log_loss" in metrics:
        notes.append(
            f"Log loss {metrics['log_loss']:.3f} nats (0.693 knows nothing); expected calibration "
            f"error {metrics['calibration_error']:.3f}."
        )
    if "gained" in metrics:
        gained = metric(metrics, "gained", "+.3f")
        notes.append(f"Over the bag of words, on the same comparisons: {gained}.")
    return notes


def _plot_calibration(rows: list[dict[str, Any]], path: Path) -> None:
    """Predicted probability against the share that people prefer, with the number of pairs."""
    bins, error = calibration([row["rewards"] for row in rows], [row["pairs"] for row in rows])
    with plots.picture(path, width=4.6, height=4.4) as axes:
        plots.line(axes, [(0, 0), (1, 1)], "calibrated", ":", "grey")
        points = [(bin_.predicted, bin_.preferred) for bin_ in bins]
        plots.line(axes, points, f"reward model, error {error:.3f}")
        for bin_, point in zip(bins, points, strict=True):
            axes.annotate(
                f"{bin_.count:,}", point, textcoords="offset points", xytext=(4, -10), fontsize=7
            )
        axes.set(
            xlabel="predicted: σ(difference of rewards)",
            ylabel="share that people prefer (and pairs)",
        )


DPO_PANELS = {
    "loss of a step": ("loss",),
    "accuracy of the implicit reward": ("training_accuracy", "held_out/accuracy"),
    "implicit reward, training": ("better_reward", "worse_reward"),
    "better minus worse": ("margin", "held_out/margin"),
}


def show_dpo(built: Built, folder: Path) -> None:
    """figures.md and training.png."""
    m, gained = built.metrics, ""
    if "nats_gained/better" in m:
        gained = (
            "On held-out comparisons the better response has gained "
            f"{m['nats_gained/better']:+.2f} nats and the worse one {m['nats_gained/worse']:+.2f}: "
            "DPO trains the difference, and both may fall."
        )
    write_markdown(folder / "figures.md", accuracies(m, {"": "implicit reward"}), gained)
    panels = [Panel.of_series(title, built.series, names) for title, names in DPO_PANELS.items()]
    plots.curves(folder / "training.png", panels)


SHOWN_WORDS = 12


def show_judge(built: Built, folder: Path) -> None:
    """figures.md."""
    path, m = folder / "figures.md", built.metrics
    facts = json.loads((built.output / JUDGE_FILE).read_text(encoding="utf-8"))
    if "not_run" in facts:
        write_markdown(path, f"There is no judge here: {facts['not_run']}.")
        return
    judge, accuracy = BagOfWords.load(built.output), metric(m, "accuracy")
    order = judge.coefficients.argsort(kind="stable")

    def quoted(indices: Iterable[int]) -> str:
        return ", ".join(f"“{judge.words[index]}”" for index in indices)

    write_markdown(
        path,
        f"Logistic regression on {int(m['words']):,} words and pairs of words, from "
        f"{int(m['comparisons']):,} comparisons in {int(m['rankings']):,} rankings that nothing "
        "else is trained or measured on.",
        f"Accuracy on held-out comparisons: {accuracy}, bootstrap over rankings."
        + not_resampled_note([accuracy]),
        f"For an answer: {quoted(order[::-1][:SHOWN_WORDS])}.",
        f"Against: {quoted(order[:SHOWN_WORDS])}.",
    )


PPO_PANELS = {
    "reward, mean of a batch": ("reward", "reward_with_penalty"),
    "KL to the reference, nats an answer": ("kl",),
    "entropy, nats a token": ("entropy",),
    "length, tokens an answer": ("length",),
    "share of clipped ratios, last minibatch of a batch": ("clip_fraction",),
    "value error, squared, last minibatch of a batch": ("value_error",),
    "explained variance of the values": ("explained_variance",),
    "coefficient of the KL penalty": ("kl_coefficient",),
}


def show_ppo(built: Built, folder: Path) -> None:
    """training.png, reward_kl.png, figures.md and samples.md."""
    panels = [Panel.of_series(title, built.series, names) for title, names in PPO_PANELS.items()]
    plots.curves(folder / "training.png", panels)
    with plots.picture(folder / "reward_kl.png", width=6, height=4) as axes:
        plots.line(axes, reward_by_kl(built))
        axes.set(
            xlabel="√KL to the reference, of a batch's mean (0 where the estimate is below 0)",
            ylabel="reward",
        )
    write_markdown(folder / "figures.md", metrics_table(built))
    if built.texts:
        write_markdown(folder / "samples.md", *_answers_on_the_way(built))


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
        "reward is the reward model's own, which the policy was trained to raise. Held-out text: "
        f"{READ_ON}."
    )
    return key_values(values, note)


def _answers_on_the_way(built: Built) -> list[str]:
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
