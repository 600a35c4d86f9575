"""The kernels are densities with the peak and width they claim; histograms and cuts share them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from nablab.relax.cuts import PROFILES, soft_cut
from nablab.relax.histograms import BLOCK, hard_counts, kde_counts, kde_method
from nablab.relax.kernels import KERNELS, named

X = np.random.default_rng(8).normal(size=300)
EDGES = np.array([-2.0, -0.5, 0.1, 1.0, 2.5])


@pytest.mark.parametrize("name", KERNELS)
def test_peak_width_and_area(name):
    kernel = KERNELS[name]
    density = jax.jit(jax.grad(kernel.cdf))
    assert density(0.0) == pytest.approx(kernel.peak, rel=1e-14)
    reach = 1 if name in ("epanechnikov", "biweight") else 40
    assert quad(density, -reach, reach, points=[0])[0] == pytest.approx(1.0, rel=1e-8)
    variance = quad(lambda u: u**2 * density(u), -reach, reach, points=[0])[0]
    assert variance == pytest.approx(kernel.deviation**2, rel=1e-8)
    u = np.linspace(-0.99, 3.0, 50)
    np.testing.assert_allclose(jnp.exp(kernel.log_cdf(u)), kernel.cdf(u), rtol=1e-12)
    assert kernel.cdf(-u) + kernel.cdf(u) == pytest.approx(np.ones(50), rel=1e-12)


def test_gaussian_log_cdf_and_its_derivatives_far_outside():
    u = np.array([-1e7, -1e4, -40.0, -1.0, -1e-9, 0.0, 1.0, 8.0])
    log_cdf = KERNELS["gaussian"].log_cdf
    np.testing.assert_allclose(log_cdf(u), norm.logcdf(u), rtol=1e-12)
    slopes = jax.vmap(jax.grad(log_cdf))(u)
    near = u >= -40
    np.testing.assert_allclose(slopes[near], np.exp(norm.logpdf(u) - norm.logcdf(u))[near], 1e-10)
    np.testing.assert_allclose(slopes[~near], -u[~near], rtol=1e-6)
    curvatures = jax.vmap(jax.grad(jax.grad(log_cdf)))(u)
    np.testing.assert_allclose(curvatures[near], (-slopes * (slopes + u))[near], rtol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("fold_tails", [False, True])
def test_histogram_of_each_kernel(kernel, fold_tails):
    """A bin is a difference of two cuts; narrow kernels give the hard histogram."""
    cdf, deviation = KERNELS[kernel].cdf, KERNELS[kernel].deviation
    below = np.array(cdf(deviation * (EDGES - X[:, None]) / 0.3))
    if fold_tails:
        below[:, 0], below[:, -1] = 0, 1
    weights = np.linspace(-1, 2, 300)
    soft = kde_counts(
        X, EDGES, bandwidth=0.3, weights=weights, fold_tails=fold_tails, kernel=kernel
    )
    expected = weights[:, None] * np.diff(below, axis=1)
    np.testing.assert_allclose(soft.values, expected.sum(axis=0), rtol=1e-11)
    np.testing.assert_allclose(soft.variances, (expected**2).sum(axis=0), rtol=1e-11)
    narrow = kde_counts(
        X, EDGES, bandwidth=1e-9, weights=weights, fold_tails=fold_tails, kernel=kernel
    )
    hard = hard_counts(X, EDGES, bandwidth=None, weights=weights, fold_tails=fold_tails)
    np.testing.assert_allclose(narrow.values, hard.values, atol=1e-11)


@pytest.mark.parametrize("profile", PROFILES)
def test_bin_is_a_difference_of_cuts(profile):
    kernel = KERNELS[PROFILES[profile]]
    slope = 4 * kernel.peak * kernel.deviation / 0.3
    passing = jnp.array([soft_cut(X, edge, slope=slope, profile=profile).sum() for edge in EDGES])
    counts = kde_counts(X, EDGES, bandwidth=0.3, kernel=PROFILES[profile]).values
    np.testing.assert_allclose(counts, -np.diff(passing), rtol=1e-11)


@pytest.mark.parametrize("kernel", ["logistic", "epanechnikov", "biweight"])
def test_gradients_of_other_kernels(kernel):
    def merit(x, edges, bandwidth, weights):
        counts = kde_counts(x, edges, bandwidth=bandwidth, weights=weights, kernel=kernel)
        return (counts.values * jnp.arange(4) + counts.variances**2).sum()

    at = X[:6], EDGES, 0.4, np.linspace(0.5, 1.5, 6)
    gradients = jax.grad(merit, argnums=(0, 1, 2, 3))(*map(jnp.asarray, at))
    generator = np.random.default_rng(1)
    tangents = [generator.normal(size=np.shape(a)) for a in at]
    up, down = (
        merit(*(jnp.asarray(a + step * t) for a, t in zip(at, tangents, strict=True)))
        for step in (1e-6, -1e-6)
    )
    slope = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    assert slope == pytest.approx(float(up - down) / 2e-6, rel=1e-7)


def test_names():
    assert kde_method(BLOCK + 1) == "fast Gauss transform"
    assert kde_method(BLOCK + 1, kernel="biweight") == "direct sum"
    assert named("kernel", "biweight") == "biweight"
    for events in (3, BLOCK + 1):
        with pytest.raises(ValueError, match="kernel is 'box': it must be one of logistic"):
            kde_counts(jnp.zeros(events), EDGES, bandwidth=0.3, kernel="box")
