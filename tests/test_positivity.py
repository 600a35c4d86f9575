"""Templates that go negative between the simulated points are found, penalised and reported."""

import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from nablab import infer, judge, model, train
from nablab.model.histfactory import from_spec
from nablab.model.positivity import warn_of_negative

# A quarter of an event that becomes 57 and none: a sextic in between.
DEEP = {
    "signal": [5.0, 1.0],
    "background": [0.25, 99.75],
    "down": [0.0, 100.0],
    "up": [57.0, 43.0],
}
GRID = np.linspace(-1, 1, 81)


def built(numbers, code="code4p"):
    return from_spec(models.histosys(**numbers), codes={"histosys": code})


def sextic(alpha, down, nominal, up):
    """HistFactory's code 4p by its definition: even and odd parts, joined smoothly at +-1."""
    odd, even = (up - down) / 2, (up + down) / 2 - nominal
    return nominal + odd * alpha + even * (15 * alpha**2 - 10 * alpha**4 + 3 * alpha**6) / 8


def test_rates_between_the_simulated_points():
    deep = built(DEEP)
    rates = model.varied_rates(deep, GRID)
    sides = (np.array(DEEP[name])[:, None] for name in ("down", "background", "up"))
    np.testing.assert_allclose(rates, sextic(GRID, *sides).T[None], atol=1e-10)
    found = model.lowest_rates(deep)
    assert found.rates[0] == rates.min() < -3.5
    assert found.bins[0] == 0 and found.values[0] == pytest.approx(GRID[rates[0, :, 0].argmin()])
    assert deep.parameter_names[found.parameters[0]] == "shape"
    with_signal = model.lowest_rates(deep, mu=1.0)
    assert with_signal.rates[0] == pytest.approx(found.rates[0] + 5.0)


@pytest.mark.parametrize("fit", [infer.best_fit, infer.cls, infer.upper_limit])
def test_fits_say_so(fit):
    deep = built(DEEP)
    with pytest.warns(model.NegativeRates, match=r"bin 0 expects -[0-9.]+ events where 'shape'"):
        fit(deep, deep.expected_data(deep.init))


@pytest.mark.parametrize(
    "expected", [infer.expected_cls, infer.expected_p0, infer.expected_upper_limit]
)
def test_expectations_say_so(expected):
    with pytest.warns(model.NegativeRates):
        expected(built(DEEP))


def test_a_parameter_that_the_model_fixes_is_not_blamed():
    deep = built(DEEP)
    fixed = deep.fixed.at[deep.index("shape")].set(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", model.NegativeRates)
        warn_of_negative(replace(deep, fixed=fixed))


def test_straight_lines_stay_positive():
    with warnings.catch_warnings():
        warnings.simplefilter("error", model.NegativeRates)
        straight = built(DEEP, "code0")
        infer.best_fit(straight, straight.expected_data(straight.init))
    assert model.lowest_rates(straight).rates[0] == 0.0
    assert train.negative_rates(straight) == 0.0


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("code", ["code0", "code2", "code4p"])
def test_the_warning_comes_where_a_rate_is_negative(seed, code):
    """Against all rates on the grid, two shapes and two samples."""
    rng = np.random.default_rng(seed)

    def shape(name, nominal):
        sides = {k: nominal * rng.uniform(0, 3, 3) for k in ("lo_data", "hi_data")}
        return models.modifier("histosys", name, sides)

    first, second = rng.uniform(0.5, 3, (2, 3))
    samples = {
        "signal": ([1.0, 1.0, 1.0], [models.MU]),
        "first": (first, [shape("one", first), shape("two", first)]),
        "second": (second, [shape("two", second)]),
    }
    spec = {"channels": [models.channel("c", **samples)]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = from_spec(spec, codes={"histosys": code})
        warn_of_negative(found)
    lowest = model.varied_rates(found, GRID).min()
    warned = any(issubclass(w.category, model.NegativeRates) for w in caught)
    assert warned == (lowest < -1e-9), lowest


def test_penalty_and_its_gradient():
    @jax.jit
    def penalty(background):
        return train.negative_rates(built(DEEP | {"background": background}))

    background = jnp.array(DEEP["background"])
    rates = np.asarray(model.varied_rates(built(DEEP), np.linspace(-1, 1, 21)))
    assert float(penalty(background)) == pytest.approx((np.minimum(rates, 0) ** 2).sum() / 21)
    slope, step = jax.grad(penalty)(background), 1e-5
    up, down = (penalty(background.at[0].add(sign * step)) for sign in (1, -1))
    assert float(slope[0]) == pytest.approx(float(up - down) / (2 * step), rel=1e-6)
    assert slope[0] < 0


def test_judge_says_so():
    deep, straight = built(DEEP), built(DEEP, "code0")
    assert "negative" in str(judge.positivity(deep))
    assert "negative" not in str(judge.positivity(straight))
    interval = judge.expected_interval(straight)
    assert interval.down > 0 and interval.up > 0
    assert interval.fisher == pytest.approx(float(infer.poi_uncertainty(straight)))
