"""Feldman-Cousins intervals from toys against sums over all outcomes, and published ones."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
from scipy.stats import poisson

from nablab.infer import intervals
from nablab.model.histfactory import from_spec

KEY = jax.random.key(5)
WIDE = {"parameters": [{"name": "mu", "bounds": [[0.0, 40.0]], "inits": [1.0]}]}
BACKGROUND = 3.0
GRID = np.linspace(0.0, 16.0, 65)
# Table IV of physics/9711021: 90 %, known background of 3.0, by number of events. That of 0 events
# is left out: there the paper lengthens the interval of the construction, [0, 0.95], to [0, 1.08].
PUBLISHED = {
    1: (0.0, 1.88),
    2: (0.0, 3.04),
    3: (0.0, 4.42),
    4: (0.0, 5.60),
    5: (0.0, 6.99),
    6: (0.15, 8.47),
    7: (0.89, 9.53),
    8: (1.51, 10.99),
    9: (1.88, 12.30),
    10: (2.63, 13.50),
}


def exact_p_values(n, grid):
    """Probability of counts that are at most as likely, relative to their best fit, as ``n``."""
    counts = np.arange(80)
    best = np.maximum(counts, BACKGROUND)
    p = []
    for mu in grid:
        ratio = poisson.logpmf(counts, mu + BACKGROUND) - poisson.logpmf(counts, best)
        p.append(poisson.pmf(counts, mu + BACKGROUND)[ratio <= ratio[n] + 1e-9].sum())
    return np.minimum(p, 1.0)


@pytest.fixture(scope="module")
def counting():
    """One bin, known background."""
    signal, background = ([1.0], [models.MU]), ([BACKGROUND], [])
    return from_spec(
        {"channels": [models.channel("c", signal=signal, background=background)], **WIDE}
    )


@pytest.fixture(scope="module")
def on_off():
    """One bin, background 8 +- 8: one auxiliary event is expected."""
    return from_spec({**models.shapesys([1.0], [8.0], [8.0]), **WIDE})


@pytest.mark.parametrize("n", PUBLISHED)
def test_reference_construction_gives_the_published_table(n):
    fine = np.arange(0.0, 15.0, 0.005)
    accepted = fine[exact_p_values(n, fine) > 0.1]
    np.testing.assert_allclose([accepted[0], accepted[-1]], PUBLISHED[n], atol=0.0101)


@pytest.mark.parametrize("n", [0, 3, 7, 10])
def test_counting_experiment(counting, n):
    found = intervals.feldman_cousins(counting, jnp.array([n * 1.0]), GRID, key=KEY, progress=False)
    assert found.require() is found
    exact = exact_p_values(n, GRID)
    # Where all toys agree the error is 1 / toys: compare those with the Poisson error, too.
    error = np.maximum(found.p_errors, np.sqrt(exact * (1 - exact) / 1000))
    pulls = (found.p_values - exact) / error
    assert abs(pulls).max() < 4 and pulls.std() < 1.3
    np.testing.assert_array_equal(found.accepted, found.p_values > 0.1)
    lower, upper = PUBLISHED.get(n, (0.0, 0.95))
    assert abs(found.lower - lower) <= 3 * found.lower_error
    assert abs(found.upper - upper) <= 3 * found.upper_error
    assert 0.25 / np.sqrt(12) < found.upper_error < 0.6
    assert (found.lower_error == 0) == (n in (0, 3))


def on_off_terms(n, m, mu, background=8.0, tau=1.0):
    """-2 log L of main count n and auxiliary count m: profiled at ``mu``, best, and the profile."""

    def deviance(mu, gamma):
        return -2 * (poisson.logpmf(n, mu + background * gamma) + poisson.logpmf(m, tau * gamma))

    slope = (background + tau) * mu - background * (n + m)
    root = np.sqrt(slope**2 + 4 * (background + tau) * background * mu * m)
    profiled = (root - slope) / (2 * (background + tau) * background)
    no_signal = deviance(0.0, (n + m) / (background + tau))
    best = np.where(
        n > background * m / tau, deviance(n - background * m / tau, m / tau), no_signal
    )
    return deviance(mu, profiled), best, profiled


def test_nuisance_parameters_are_profiled_on_the_data(on_off):
    """Sum over all outcomes, with the fits in closed form."""
    observed, toys = (20, 1), 4000
    grid = np.array([0.0, 1.0, 3.0, 7.0, 12.0, 22.0, 32.0])
    n, m = np.meshgrid(np.arange(150), np.arange(45), indexing="ij")
    exact = []
    for mu in grid:
        at_mu, best, _ = on_off_terms(n, m, mu)
        at_data, best_at_data, gamma = on_off_terms(*map(np.array, observed), mu)
        probability = poisson.pmf(n, mu + 8.0 * gamma) * poisson.pmf(m, gamma)
        exact.append(probability[at_mu - best >= at_data - best_at_data - 1e-7].sum())
    data = jnp.array(observed, dtype=float)
    found = intervals.feldman_cousins(on_off, data, grid, key=KEY, toys=toys, progress=False)
    np.testing.assert_array_less(abs(found.p_values - np.array(exact)), 4 * found.p_errors)
    assert int(found.failed.sum()) == 0
    crossing = np.interp(-0.1, -np.array(exact[3:]), grid[3:])
    assert abs(found.upper - crossing) < 3 * found.upper_error
    # The same points twice, with the same random numbers.
    pairs = np.array([0.0, 1e-12, 3.0, 3.0 + 1e-9, 7.0, 7.0 + 1e-9, 8.0])
    shared = intervals.feldman_cousins(on_off, data, pairs, key=KEY, toys=500, progress=False)
    np.testing.assert_array_equal(shared.p_values[0:6:2], shared.p_values[1:6:2])


def ends(p_values, p_errors=0.0, grid=None, lowest=0.0):
    grid = jnp.arange(len(p_values)) * 1.0 if grid is None else jnp.array(grid)
    found = intervals._ends(
        grid, jnp.array(p_values), jnp.full(len(p_values), p_errors), 0.1, lowest
    )
    return [float(end) for end in found]


def test_ends_of_a_scan():
    step = 1 / np.sqrt(12)
    # A straight line crosses 0.1 at 0.5 and at 3.75.
    lower, upper, lower_error, upper_error = ends([0.0, 0.2, 1.0, 0.4, 0.0], 0.04)
    assert (lower, upper) == pytest.approx((0.5, 3.75))
    assert lower_error == pytest.approx(np.hypot(step, 0.2))
    assert upper_error == pytest.approx(np.hypot(step, 0.1))
    assert ends([0.0, 0.08, 0.12, 1.0, 0.12, 0.08])[:2] == pytest.approx([1.5, 4.5])
    # A gap does not end the interval; the boundary has no error.
    assert ends([0.2, 0.0, 0.2, 0.0]) == pytest.approx([0.0, 2.5, 0.0, step])
    # The grid ends before the interval.
    assert ends([0.2, 1.0, 0.2])[:2] == [0.0, np.inf]
    assert ends([0.2, 1.0, 0.2], grid=[1.0, 2.0, 3.0])[:2] == [-np.inf, np.inf]
    # Nothing is accepted, or unknown.
    assert np.isnan(ends([0.0, 0.05, 0.0])).all()
    assert np.isnan(ends([0.2, 1.0, np.nan])[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": np.array([1.0, 0.5])}, r"grid must increase: grid\[0\]=1.0, grid\[1\]=0.5"),
        (
            {"grid": np.array([0.0, 50.0])},
            r"grid\[1\] is 50, outside of the bounds \[0, 40\] of 'mu'",
        ),
        ({"grid": np.array([-1.0, 1.0])}, r"grid\[0\] is -1, outside of the bounds \[0, 40\]"),
        ({"confidence": 95.0}, "confidence is 95.0: it must be between 0 and 1"),
        ({"data": jnp.ones(3)}, "data has shape"),
        ({"toys": 0}, "toys is 0"),
    ],
)
def test_bad_input_is_named(counting, change, message):
    arguments = {"data": jnp.ones(1), "grid": GRID, **change}
    with pytest.raises(ValueError, match=message):
        intervals.feldman_cousins(counting, key=KEY, progress=False, **arguments)


def test_a_failed_fit_is_seen(counting):
    number, points = jnp.zeros(()), jnp.zeros(2)
    interval = intervals.Interval(
        *[number] * 5, points, points, points, jnp.array([0, 3]), certificates=()
    )
    with pytest.raises(RuntimeError, match="3 toys have a failed fit"):
        interval.require()
