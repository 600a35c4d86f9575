"""Published likelihoods of ATLAS, and pyhf's validation workspaces, against reference numbers.

pyhf with NumPy and SLSQP fails in silence on the real ones, so that the references of fits are
those of pyhf with JAX and SLSQP, which were computed once (see published.py).
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pyhf
import pytest
from published import DATA, LEPTONS, REFERENCES, VALIDATION

from fetch_data import POINTS as SIGNALS
from fetch_data import SBOTTOM, TTBAR
from nablab.infer import diagnostics, hypotests, limits, mle
from nablab.model import named_numbers, workspaces
from nablab.model.named_numbers import NamedNumbers

# Pinned in pyhf's own regression tests.
PYHF_REGRESSION = {
    "1300_205_60": (0.24443627759085326, [0.0902250905, 0.1937839195, 0.3843234493]),
    "1400_950_60": (0.021373283911064852, [0.0026445531, 0.0139761265, 0.0649710582]),
    "1500_850_60": (0.045367205665400624, [0.0059843179, 0.0261022401, 0.1009364149]),
}

needs_sbottom = pytest.mark.needs(f"{SBOTTOM}/BkgOnly.json")
needs_ttbar = pytest.mark.needs(TTBAR)


def marked(names):
    """Likelihoods as parameters of a test, each with the files it needs."""
    marks = {"ttbar": needs_ttbar} | dict.fromkeys(SIGNALS, needs_sbottom)
    return [pytest.param(name, marks=marks.get(name, ())) for name in names]


def source(name):
    """Workspace and patches of a likelihood, as dicts."""
    if name in VALIDATION:
        return VALIDATION[name], []
    if name == "leptons":
        return LEPTONS, []

    def content(path):
        return json.loads((DATA / path).read_bytes())

    if name == "ttbar":
        return content(TTBAR), []
    return content(f"{SBOTTOM}/BkgOnly.json"), [content(f"{SBOTTOM}/patch.sbottom_{name}.json")]


@functools.cache
def load(name):
    """Model, data and the patched workspace."""
    workspace, patches = source(name)
    return *workspaces.read(workspace, patches=patches), workspaces.patched(workspace, patches)


@jax.jit
def evaluate(model, points, data):
    """Log-density and expected data at each point."""
    return jax.vmap(lambda p: (model.logpdf(p, data), model.expected_data(p)))(points)


@pytest.mark.parametrize("name", marked([*VALIDATION, "leptons", "ttbar"]))
def test_density_and_expected_data_equal_pyhf(name):
    assert_equal_pyhf(name)


@needs_sbottom
def test_density_and_expected_data_of_all_signals_equal_pyhf(subtests):
    for name in SIGNALS:
        with subtests.test(name):
            assert_equal_pyhf(name)


def assert_equal_pyhf(name):
    """At random points, and in parameters, bounds and data."""
    workspace, patches = source(name)
    theirs = pyhf.Workspace(workspace).model(patches=patches)
    config, observed = theirs.config, pyhf.Workspace(workspace).data(theirs)
    model, data, _ = load(name)
    assert model.parameter_names == tuple(config.par_names)
    np.testing.assert_array_equal(model.fixed, config.suggested_fixed())
    np.testing.assert_array_equal(
        np.stack([model.lower, model.upper], axis=1), config.suggested_bounds()
    )
    np.testing.assert_allclose(data, observed, rtol=1e-14)
    lower, upper = np.array(config.suggested_bounds()).T
    moves = np.random.default_rng(11).normal(size=(5, len(lower)))
    points = np.clip(model.init + np.where(lower < 0, 1.0, 0.1) * moves, lower, upper)
    densities, expected = evaluate(model, points, data)
    for point, density, counts in zip(points, densities, expected, strict=True):
        np.testing.assert_allclose(density, theirs.logpdf(point, observed)[0], rtol=1e-10)
        np.testing.assert_allclose(counts, theirs.expected_data(point), rtol=1e-10)


@needs_sbottom
def test_all_signals_share_one_compilation():
    assert len({id(load(name)[0].structure) for name in SIGNALS}) == 1


@jax.jit
def three_fits(model, data):
    """The signal strength free, 0 and 1."""
    return mle.fits(model, data, {}, *({model.poi_index: mu} for mu in (0.0, 1.0)))


@pytest.mark.parametrize("name", marked(REFERENCES))
def test_minima_are_not_above_the_reference(name):
    (model, data, _), reference = load(name), REFERENCES[name]
    perfect = -2.0 * model.logpdf(model.init, data) - model.deviance(model.init, data)
    for kind, fit in zip(("free", "mu0", "mu1"), three_fits(model, data), strict=True):
        fit.certificate.require()
        twonll = float(fit.value + perfect)
        assert twonll <= reference.twonll[kind] + 1e-6, kind
        # Nor far below, except where the reference itself did not arrive.
        if (name, kind) != ("ttbar", "mu0"):
            np.testing.assert_allclose(twonll, reference.twonll[kind], atol=1e-4)
        if kind == "free":
            best = fit.parameters[model.poi_index]
            np.testing.assert_allclose(best, reference.best, atol=1e-6)


@needs_ttbar
def test_cross_section_of_top_pairs():
    model, data, _ = load("ttbar")
    best, _, _ = three_fits(model, data)
    np.testing.assert_allclose(best.parameters[model.poi_index], 0.994214, atol=5e-7)
    variance = jnp.diag(diagnostics.covariance(model, best.parameters))
    np.testing.assert_allclose(jnp.sqrt(variance[model.poi_index]), 0.0425, atol=2e-4)


@functools.cache
def with_slopes(name, test):
    """What ``test(model, data)`` observes, with its slope in every number of the workspace."""
    _, _, workspace = load(name)

    def observed(vector):
        numbers = named_numbers.numbers(workspace)
        moved = NamedNumbers(vector, numbers.names, numbers.shapes)
        result = test(*workspaces.read(named_numbers.with_numbers(workspace, moved)))
        return result.observed, result

    return jax.jit(jax.value_and_grad(observed, has_aux=True))


def vector(name):
    return np.array(named_numbers.numbers(load(name)[2]).vector)


@pytest.mark.parametrize("name", marked(name for name in REFERENCES if name != "ttbar"))
def test_cls_equals_the_reference(name):
    """Not of the cross section of top pairs, which is 23 standard deviations from 0."""
    if name in SIGNALS:  # the numbers of all signals go through the function of one
        (_, result), _ = with_slopes("1300_205_60", hypotests.cls)(vector(name))
    else:
        result = hypotests.cls(*load(name)[:2])
    result.require()
    band = [result.observed, *result.expected]
    np.testing.assert_allclose(band, REFERENCES[name].cls, rtol=1e-5)
    if name in PYHF_REGRESSION:
        pinned, expected = PYHF_REGRESSION[name]
        np.testing.assert_allclose(result.observed, pinned, rtol=1e-5)
        np.testing.assert_allclose(result.expected[:3], expected, rtol=1e-4)


@needs_sbottom
def test_cls_at_the_upper_limits_of_sbottom_is_the_level():
    model, data, _ = load("1300_205_60")
    limit = limits.upper_limit(model, data).require()
    for band, mu in enumerate([limit.observed, *limit.expected]):
        result = hypotests.cls(model, data, mu).require()
        level = jnp.append(result.observed, result.expected)[band]
        np.testing.assert_allclose(level, 0.05, rtol=1e-8)


@pytest.mark.parametrize(
    ("name", "test", "count", "noise"),
    [
        pytest.param("1300_205_60", hypotests.cls, 20, 1e-12, marks=needs_sbottom),
        ("leptons", limits.upper_limit, 50, 1e-14),
    ],
    ids=["sbottom-cls", "leptons-limit"],
)
def test_slopes_equal_differences(name, test, count, noise):
    """In random numbers of the workspace, of those that matter at all.

    ``noise`` is what rounding leaves of the result of a test, found by moving a number by 1e-9.
    """
    function, numbers = with_slopes(name, test), vector(name)
    (_, result), slopes = function(numbers)
    for certificate in result.certificates:
        certificate.require()
    slopes = slopes * numbers  # for a relative change
    matter = np.flatnonzero(np.abs(slopes) > 1e-5)
    precise = 0
    for i in np.random.default_rng(4).permutation(matter)[:count]:

        def observed(change, i=i):
            moved = numbers.copy()
            moved[i] *= 1 + change
            return float(function(moved)[0][0])

        difference, error = extrapolated_difference(observed, noise)
        assert abs(slopes[i] - difference) < 1e-5 * abs(difference) + error, (i, difference, error)
        precise += error < 1e-5 * abs(difference)
    assert precise >= min(count, len(matter)) / 2


def extrapolated_difference(function, noise, first=0.02, levels=4):
    """Derivative at 0 and its error, by Ridders' extrapolation of central differences."""
    rows, best = [], (np.nan, np.inf)
    for level in range(levels):
        step = first / 2**level
        row = [(function(step) - function(-step)) / (2 * step)]
        for k in range(level):
            power = 4 ** (k + 1)
            row.append((power * row[k] - rows[-1][k]) / (power - 1))
            error = max(abs(row[-1] - row[-2]), abs(row[-1] - rows[-1][k])) + 3 * noise / step
            best = min(best, (row[-1], error), key=lambda pair: pair[1])
        rows.append(row)
    return best
