"""Scaling laws recover what synthetic losses were made by, and their intervals hold as often as
they say.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from gpt_model.published import references
from gpt_model.scaling_laws import PF_DAY, Law, fit_compute, fit_terms, why_not_terms

COMPUTES = np.geomspace(1e-9, 1e-7, 5)  # petaflop/s-days


def test_the_law_without_noise_is_recovered_exactly() -> None:
    law = fit_compute(COMPUTES, 2.57 * COMPUTES**-0.048)
    assert (law.floor, law.scale, law.exponent) == pytest.approx((0.0, 2.57, 0.048))
    assert law.interval(1.0) == pytest.approx((2.57, 2.57))
    many = np.geomspace(1e-9, 1e-5, 8)
    with_floor = fit_compute(many, 1.7 + 0.3 * many**-0.15)
    assert (with_floor.floor, with_floor.scale, with_floor.exponent) == pytest.approx(
        (1.7, 0.3, 0.15), rel=1e-3
    )


@pytest.mark.parametrize("points", [3, 4, 5])
def test_of_a_hundred_predictions_ninety_come_true_at_ninety_percent(points: int) -> None:
    """A model twenty times larger than those fitted, 500 ladders with 2 % noise of each loss; as of
    exponents.
    """
    draw, inside, exponents = np.random.default_rng(7), 0, 0
    computes = np.geomspace(1e-9, 1e-7, points)
    for ladder in range(500):
        losses = 2.57 * computes**-0.048 * np.exp(0.02 * draw.standard_normal(points))
        law = fit_compute(computes, losses, seed=ladder)
        low, high = law.interval(2e-6)
        inside += low <= 2.57 * 2e-6**-0.048 * np.exp(0.02 * draw.standard_normal()) <= high
        low, high = law.exponent_interval()
        exponents += low <= 0.048 <= high
    assert inside / 500 == pytest.approx(0.9, abs=0.04)  # three standard errors
    assert exponents / 500 == pytest.approx(0.9, abs=0.04)


@pytest.mark.slow
def test_with_a_floor_too_predictions_hold_about_as_often_as_they_say() -> None:
    draw, inside = np.random.default_rng(3), 0
    computes = np.geomspace(1e-9, 1e-6, 8)
    for ladder in range(20):
        losses = (1.5 + 0.4 * computes**-0.1) * np.exp(0.01 * draw.standard_normal(8))
        law = fit_compute(computes, losses, seed=ladder)
        low, high = law.interval(5e-6)
        inside += low <= (1.5 + 0.4 * 5e-6**-0.1) * np.exp(0.01 * draw.standard_normal()) <= high
    assert inside >= 15  # of 20; by chance alone less in 1.1 of 100 such tests


def test_an_interval_is_wider_further_out_at_a_higher_level_and_with_fewer_models() -> None:
    noise = np.exp([0.01, -0.01, 0.005, -0.005, 0.01])
    law = fit_compute(COMPUTES, 2.57 * COMPUTES**-0.048 * noise)

    def width(law: Law, compute: float, level: float = 0.9) -> float:
        low, high = law.interval(compute, level)
        return high - low

    assert width(law, 1e-7) < width(law, 1e-5) < width(law, 1e-3)
    assert width(law, 1e-5, 0.5) < width(law, 1e-5) < width(law, 1e-5, 0.99)
    assert width(fit_compute(COMPUTES[:3], (2.57 * COMPUTES**-0.048 * noise)[:3]), 1e-5) > width(
        law, 1e-5
    )
    low, high = law.interval(1e-5, noise=False)
    assert high - low < width(law, 1e-5)


def test_a_fit_is_the_same_again_and_through_json() -> None:
    losses = 2.57 * COMPUTES**-0.048 * np.exp([0.01, -0.01, 0.0, 0.01, -0.01])
    law = fit_compute(COMPUTES, losses)
    text = json.dumps(law.as_json())
    assert text == json.dumps(fit_compute(COMPUTES, losses).as_json())
    again = Law.from_json(json.loads(text))
    assert again.interval(1e-5) == pytest.approx(law.interval(1e-5), rel=1e-4) and again.at(
        1e-5
    ) == pytest.approx(law.at(1e-5), rel=1e-4)


def test_two_models_make_no_law() -> None:
    with pytest.raises(ValueError, match="2 models of 2 sizes"):
        fit_compute([1, 2], [3, 2])
    with pytest.raises(ValueError, match="3 models of 1 sizes"):
        fit_compute([1, 1, 1], [3, 2, 2.5])


N, D = (values.ravel() for values in np.meshgrid(np.geomspace(1e7, 1e9, 4), [5.0, 20.0, 80.0]))
D = N * D


def hoffmann(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.69 + 406.4 / n**0.34 + 410.7 / d**0.28


@pytest.mark.slow
def test_parameters_and_data_are_told_apart_where_both_were_varied() -> None:
    exact = fit_terms(N, D, hoffmann(N, D))
    assert (exact.floor, exact.alpha, exact.beta) == pytest.approx((1.69, 0.34, 0.28), rel=0.02)
    noisy = hoffmann(N, D) * np.exp(0.002 * np.random.default_rng(1).standard_normal(len(N)))
    terms = fit_terms(N, D, noisy)
    for name, truth in {"floor": 1.69, "alpha": 0.34, "beta": 0.28}.items():
        low, high = terms.interval(name, 0.99)
        assert low < truth < high and low < getattr(terms, name) < high, name
    assert terms.at(1e9, 2e10) == pytest.approx(float(hoffmann(1e9, 2e10)), rel=0.01)


@pytest.mark.slow
def test_compute_is_best_spent_where_the_loss_is_lowest() -> None:
    terms = fit_terms(N, D, hoffmann(N, D))
    ratio, product = terms.tokens_per_parameter(1e-3), 1e-3 * PF_DAY / 6
    losses = {
        r: terms.at((product / r) ** 0.5, (product * r) ** 0.5)
        for r in (ratio / 1.3, ratio, ratio * 1.3)
    }
    assert min(losses, key=losses.__getitem__) == ratio


def test_one_number_of_tokens_a_parameter_tells_size_and_data_apart_in_no_way() -> None:
    sizes = np.geomspace(1e6, 1e8, 7)
    assert "7 sizes at 1 numbers of tokens a parameter" in str(why_not_terms(sizes, 20 * sizes))
    with pytest.raises(ValueError, match="three of each"):
        fit_terms(sizes, 20 * sizes, hoffmann(sizes, 20 * sizes))


def test_gpt3s_line_is_the_published_one() -> None:
    printed = {reference.metric: reference.value for reference in references(task="scaling law")}
    assert printed == {"coefficient": 2.57, "exponent": -0.048}
