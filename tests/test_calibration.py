"""Coverage of a linear model: the one of a Gaussian, for the right truth and for wrong ones."""

from dataclasses import replace

import interruption
import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from scipy.stats import norm

from nablab.infer import pseudoexperiments
from nablab.judge.calibration import Coverage, as_measured, coverage
from nablab.model.histfactory import from_spec

KEY, TOYS = jax.random.key(5), 1500
LEVELS = np.array([0.683, 0.954])
SIGNAL, BACKGROUND, WIDTH = 100.0, 400.0, 0.1


def counting(background=BACKGROUND, second=0.0):
    """A bin with an uncertain background; a second one, empty in the model, makes fits fail."""
    lumi = models.modifier("lumi", "lumi")
    samples = {
        "s": ([SIGNAL, 0.0], [models.MU]),
        "b": ([background, second], [lumi]),
    }
    settings = {"auxdata": [1.0], "sigmas": [WIDTH], "bounds": [[0.1, 3.0]], "inits": [1.0]}
    parameters = [{"name": "mu", "bounds": [[-20.0, 20.0]]}, {"name": "lumi", **settings}]
    return from_spec({"channels": [models.channel("c", **samples)], "parameters": parameters})


@pytest.fixture(scope="module")
def right():
    return coverage(counting(), counting(), key=KEY, toys=TOYS)


def test_the_right_model_covers(right):
    assert right.failed == 0
    np.testing.assert_array_less(abs(right.fractions - LEVELS), 3 * right.errors)
    binomial = np.sqrt(LEVELS * (1 - LEVELS) / TOYS)
    np.testing.assert_allclose(right.errors, binomial, rtol=0.1)
    assert right.verdicts == ("right", "right")


def test_auxiliary_data_fluctuate_too():
    """Fixed where the truth is, they would take most of the spread of the best fit with them."""
    truth = replace(counting(), normal_width=jnp.full(1, 1e-6))
    assert coverage(counting(), truth, key=KEY, toys=TOYS).verdicts == ("too high", "too high")


def test_a_wrong_model_covers_as_often_as_a_shifted_gaussian():
    excess = 80.0
    spread = np.hypot(np.sqrt(SIGNAL + BACKGROUND + excess), WIDTH * BACKGROUND)
    found = coverage(counting(), counting(BACKGROUND + excess), key=KEY, toys=TOYS)
    half_width = norm.ppf((1 + LEVELS) / 2)
    shift = excess / spread
    # Measured lumi fluctuates around 1, whose part of the background has grown with it.
    expected = norm.cdf(half_width - shift) - norm.cdf(-half_width - shift)
    np.testing.assert_array_less(abs(found.fractions - expected), 3 * found.errors + 0.02)
    assert found.verdicts == ("too low", "too low")


def test_failed_fits_are_counted_and_reported(right):
    """Events where the model expects none have no fit."""
    truth = counting(second=0.3)
    found = coverage(counting(), truth, key=KEY, toys=TOYS)
    thrown = pseudoexperiments.sample(truth, truth.parameters(1.0), key=KEY, toys=TOYS)
    assert found.failed == int((thrown[:, 1] > 0).sum()) > 100
    np.testing.assert_array_less(abs(found.fractions - LEVELS), 3.5 * found.errors)
    assert (found.errors > 1.05 * right.errors).all()
    assert f"The fits of {found.failed} toys failed" in str(found)
    with pytest.raises(RuntimeError, match=f"{found.failed} of {TOYS} toys have a failed fit"):
        found.require()
    assert right.require() is right


@pytest.mark.parametrize(
    ("fraction", "failed", "verdict"),
    [
        (0.683, 0, "right"),
        (0.683, 20, "right"),  # between 0.669 and 0.689
        (0.683, 200, "undecided"),  # between 0.546 and 0.746
        (0.2, 200, "too low"),  # at most 0.36
        (0.95, 200, "too high"),  # at least 0.76
    ],
)
def test_a_verdict_does_not_depend_on_failed_fits(fraction, failed, verdict):
    numbers = np.array([fraction]), np.array([0.015])
    assert Coverage(1.0, (0.683,), *numbers, 1000, failed).verdicts == (verdict,)


def test_all_fits_failed():
    found = coverage(counting(), counting(second=50.0), key=KEY, toys=TOYS)
    assert found.failed == TOYS
    assert found.verdicts == ("failed", "failed") and "failed ± " in str(found)


def test_text_and_html(right):
    percent, error = 100 * right.fractions[0], 100 * right.errors[0]
    title, header, first, second = str(right).split("\n")
    assert title == f"coverage of mu = 1 in {TOYS} toys"
    assert header.split() == ["interval", "contains", "the", "truth", "in"]
    assert first.split() == ["68.3", "%", f"{percent:.1f}", "±", f"{error:.1f}", "%", "right"]
    assert second.startswith("  95.4 %")
    assert f"<td>{percent:.1f} ± {error:.1f} %</td><td>right</td>" in right._repr_html_()


def test_toys_that_do_not_fill_a_chunk(right):
    """A toy depends on its number only."""
    few = coverage(counting(), counting(), key=KEY, toys=1, confidence=[0.683])
    data = pseudoexperiments.sample(counting(), counting().parameters(1.0), key=KEY, toys=1)[0]
    best = (data[0] - BACKGROUND * data[2]) / SIGNAL
    spread = np.hypot(np.sqrt(SIGNAL + BACKGROUND), WIDTH * BACKGROUND) / SIGNAL
    assert abs(abs(best - 1) / spread - 1) > 0.1  # well inside or outside
    assert few.fractions[0] == float(abs(best - 1) < spread)


def test_an_interruption_keeps_the_toys_done(monkeypatch):
    kept = pseudoexperiments.CHUNK
    interruption.at_call(monkeypatch, pseudoexperiments, "_fit_chunk", 2)
    with pytest.warns(UserWarning, match=f"interrupted: {kept} of {TOYS} toys"):
        found = coverage(counting(), counting(), key=KEY, toys=TOYS)
    monkeypatch.undo()
    assert (found.toys, found.failed) == (kept, 0)
    np.testing.assert_array_equal(
        found.fractions, coverage(counting(), counting(), key=KEY, toys=kept).fractions
    )


def test_auxiliary_counts_come_in_units_of_the_model():
    """The same parameter is worth other counts where the uncertainty is another."""
    model = from_spec(models.shapesys([5.0, 5.0], [50.0, 40.0], [5.0, 8.0]))
    truth = from_spec(models.shapesys([6.0, 4.0], [55.0, 39.0], [5.0, 0.0]))
    data = as_measured(model, truth, truth.expected_data(truth.parameters(1.0)))
    np.testing.assert_allclose(data, [61.0, 43.0, *model.auxdata])
    assert not np.allclose(model.auxdata, truth.auxdata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": (0.5, 1.0)}, r"confidence\[1\] is 1.0: it must be between 0 and 1"),
        ({"toys": 0}, "toys is 0"),
        ({"mu": np.nan}, "mu is nan"),
        ({"mu": -30.0}, r"mu is -30, outside of the bounds"),
        ({"mu": -10.0}, "expected counts.* must be at least 0"),
        (
            {"truth": from_spec(models.shapesys([5.0], [50.0], [5.0]))},
            "truth has another structure than the model that is fitted",
        ),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"truth": counting(), "toys": 10, **change}
    with pytest.raises(ValueError, match=message):
        coverage(counting(), key=KEY, **arguments)
