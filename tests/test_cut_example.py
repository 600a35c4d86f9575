"""The field's classic cut optimisation gives its published numbers (A. Held, see the notebook)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from scipy.optimize import brentq

from nablab.data import toys
from nablab.relax.cuts import hard_cut, soft_cut
from nablab.train.objectives import asimov_significance

SCAN = np.linspace(20.0, 70.0, 500)
BETWEEN_EVENTS = (45.456573, 45.457959)
SMOOTH_OPTIMUM = 44.8499059723


@pytest.fixture(scope="module")
def sample():
    """Signal and background of the published seed."""
    return tuple(map(jnp.asarray, toys.cut_example()))


@pytest.fixture(scope="module")
def significance(sample):
    """``significance(weight, cut, slope)`` of the events that ``weight`` selects."""

    def significance(weight, cut, slope=1.0):
        signal, background = (weight(x, cut, slope=slope).sum() for x in sample)
        return asimov_significance(signal, background)

    return significance


@pytest.fixture(scope="module")
def slope_of_soft(significance):
    """Derivative of the soft significance with respect to the cut, compiled once a slope."""
    return jax.jit(jax.grad(partial(significance, soft_cut)), static_argnums=1)


def yields(sample, cut):
    return tuple(int(hard_cut(x, cut).sum()) for x in sample)


def test_without_a_cut(sample, significance):
    assert yields(sample, 0.0) == (300, 8000)
    assert significance(hard_cut, 0.0) == pytest.approx(3.3334597398, rel=1e-10)


def test_hard_scan(sample, significance):
    scan = jax.vmap(lambda cut: significance(hard_cut, cut))(SCAN)
    best = SCAN[np.argmax(scan)]
    assert best == pytest.approx(45.4509, abs=5e-5)
    assert yields(sample, best) == (249, 2260)
    assert scan.max() == pytest.approx(5.1457381078, rel=1e-10)


def test_exact_hard_optimum(sample, significance):
    """Below each event in turn there is a different selection, and there are no others."""
    signal, background = sample
    events = np.sort(np.concatenate(sample))[:-1]  # above the last one nothing is left
    s = signal.size - jnp.searchsorted(jnp.sort(signal), events, side="right")
    b = background.size - jnp.searchsorted(jnp.sort(background), events, side="right")
    z = asimov_significance(s.astype(float), b.astype(float))
    best = int(np.argmax(z))
    assert events[best : best + 2] == pytest.approx(BETWEEN_EVENTS, abs=5e-7)
    assert (s[best], b[best]) == (249, 2259)
    assert z[best] == pytest.approx(5.1468379213, rel=1e-10)
    for cut in (45.4566, np.mean(BETWEEN_EVENTS), 45.4579):
        assert significance(hard_cut, cut) == pytest.approx(5.1468379213, rel=1e-10)


@pytest.mark.parametrize("cut", [20.0, 37.5, *BETWEEN_EVENTS, 60.0])
def test_hard_significance_has_no_gradient(significance, cut):
    assert jax.grad(lambda c: significance(hard_cut, c))(cut) == 0.0


def test_smooth_optimum(significance, slope_of_soft):
    best = brentq(lambda cut: float(slope_of_soft(cut, 1.0)), 42.0, 47.0, xtol=1e-12)
    assert best == pytest.approx(SMOOTH_OPTIMUM, rel=1e-11)
    assert significance(soft_cut, best) == pytest.approx(4.9871260750, rel=1e-10)
    assert significance(hard_cut, best) == pytest.approx(5.0560255410, rel=1e-10)


@pytest.mark.parametrize(
    ("slope", "optimum", "z_hard"),
    [(0.5, 44.23484, 5.05726), (2.0, 45.38167, 5.11739), (5.0, 45.61677, 5.06845)],
)
def test_smooth_optimum_of_other_slopes(significance, slope_of_soft, slope, optimum, z_hard):
    low, high = optimum - 0.3, optimum + 0.3
    best = brentq(lambda cut: float(slope_of_soft(cut, slope)), low, high)
    assert best == pytest.approx(optimum, abs=6e-6)
    assert significance(hard_cut, best) == pytest.approx(z_hard, abs=6e-6)


def test_gradient_ascent(slope_of_soft):
    cut, cuts = 20.0, []
    assert slope_of_soft(cut, 1.0) == pytest.approx(0.00917021, rel=1e-6)
    for iteration in range(1000):
        cuts.append(cut)
        cut += (2.0 if iteration < 500 else 0.4) * float(slope_of_soft(cut, 1.0))
    assert cuts[250] == pytest.approx(31.289123, rel=1e-6)
    assert cuts[500] == pytest.approx(44.8499059, rel=2e-9)
    assert cut == pytest.approx(SMOOTH_OPTIMUM, rel=1e-11)


def test_population_optimum():
    """What the sample fluctuates about: the same significance of the Gaussians themselves."""

    def z(cut):
        return asimov_significance(300 * norm.sf(cut, 50, 5), 8000 * norm.sf(cut, 40, 10))

    best = brentq(jax.jit(jax.grad(z)), 42.0, 47.0, xtol=1e-12)
    assert best == pytest.approx(44.874854, rel=1e-6)  # published, from a minimiser
    assert best == pytest.approx(44.8748530978, rel=1e-9)  # with 40 digits
    assert z(best) == pytest.approx(4.99771520, rel=1e-8)


def test_steep_slope_keeps_a_gradient(sample, slope_of_soft):
    """The textbook formula overflows for events far below the cut; ``soft_cut`` must not."""

    def textbook(x, cut, slope):
        return 1 / (1 + jnp.exp(-slope * (x - cut)))

    @jax.jit
    def z(cut, slope):
        return asimov_significance(*(textbook(x, cut, slope).sum() for x in sample))

    assert z(45.0, 50.0) == pytest.approx(5.0799177239, rel=1e-9)
    assert np.isnan(jax.grad(z)(45.0, 50.0))
    assert slope_of_soft(45.0, 50.0) == pytest.approx(0.1890911137, rel=1e-6)
    assert np.isfinite(slope_of_soft(45.0, 1e4))


@pytest.mark.parametrize("cut", [-1e4, 66.0, 1e4])
@pytest.mark.parametrize("slope", [1.0, 50.0])
def test_cut_off_the_data(significance, slope_of_soft, cut, slope):
    """No signal event is left, or no event at all: a number and a gradient all the same."""
    assert np.isfinite(significance(soft_cut, cut, slope))
    assert np.isfinite(significance(hard_cut, cut))
    assert np.isfinite(slope_of_soft(cut, slope))
