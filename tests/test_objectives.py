"""Objectives against closed forms and against arithmetic with 150 digits."""

from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from models import MU, channel, histosys, shapesys
from scipy.special import expit
from scipy.stats import norm

from nablab.infer import diagnostics
from nablab.model.histfactory import from_spec
from nablab.train import objectives
from nablab.train.objectives import asimov_significance, cross_entropy


def significance(signal, background, sigma=0.0):
    return asimov_significance(signal, background, background_sigma=sigma)


COMPILED = jax.jit(significance)
GRADIENT = jax.jit(jax.grad(significance, argnums=(0, 1, 2)))

# (signal, background, uncertainty): Z, to 10 digits after the point.
PUBLISHED = {
    (2.0, 1.0, 0.0): 1.6098676132,
    (5.0, 1.0, 0.0): 3.3913291835,
    (10.0, 1.0, 0.0): 5.7230844832,
    (5.0, 5.0, 0.0): 1.9654372570,
    (10.0, 10.0, 0.0): 2.7795480248,
    (10.0, 100.0, 0.0): 0.9839916448,
    (50.0, 1000.0, 0.0): 1.5682298160,
    (300.0, 8000.0, 0.0): 3.3334597398,
    (5.0, 10.0, 1.0): 1.3928560055,
    (10.0, 100.0, 10.0): 0.6901960633,
    (50.0, 1000.0, 100.0): 0.4693515131,
    (14.0, 5.0, 1.5): 3.6149635359712184,
    (15.0, 45.0, 0.5): 2.1199625768,
    (20.0, 100.0, 5.0): 1.7226816163,
}


def exact(signal, background, sigma):
    """The published formulae, digit by digit: nothing is lost in their differences."""
    s, b, variance = Decimal(signal), Decimal(background), Decimal(sigma) ** 2
    if s == 0:
        return Decimal(0)
    if variance == 0:
        return (2 * ((s + b) * (1 + s / b).ln() - s)).sqrt()
    total, spread = s + b, b + variance
    first = total * (total * spread / (b * b + total * variance)).ln()
    return (2 * (first - b * b / variance * (1 + variance * s / (b * spread)).ln())).sqrt()


def exact_gradient(*arguments):
    """Central differences with steps that only 150 digits allow."""
    slopes = []
    for position, value in enumerate(arguments):
        step = Decimal(value) * Decimal("1e-25")
        if step == 0:  # Z is even in sigma
            slopes.append(0.0)
            continue
        ends = [list(arguments), list(arguments)]
        ends[0][position] = Decimal(value) + step
        ends[1][position] = Decimal(value) - step
        slopes.append(float((exact(*ends[0]) - exact(*ends[1])) / (2 * step)))
    return slopes


@pytest.fixture
def many_digits():
    with localcontext() as context:
        context.prec = 150
        yield


@pytest.mark.parametrize("point", PUBLISHED)
def test_published_significances(point):
    assert float(significance(*point)) == pytest.approx(PUBLISHED[point], rel=1e-9)


def test_all_published_digits():
    z = float(asimov_significance(14.0, 5.0, background_sigma=0.3 * 5.0))
    assert z == pytest.approx(3.6149635359712184, rel=1e-14)


@pytest.mark.parametrize("background", [1e-3, 1.0, 1e5])
@pytest.mark.parametrize("relative_sigma", [0.0, 1e-6, 1e-3, 0.1, 0.5, 3.0])
def test_value_and_gradient_with_150_digits(background, relative_sigma, many_digits):
    """From tiny signals to huge ones, and close to s = 0.1 b, where the code changes branch."""
    ratios = [1e-15, 1e-9, 1e-5, 0.01, 0.0999999, 0.1, 0.1000001, 0.3, 1.0, 10.0, 1e4]
    sigma = relative_sigma * background
    for signal in [ratio * background for ratio in ratios]:
        point = signal, background, sigma
        z = float(significance(*point))
        assert z == pytest.approx(float(exact(*point)), rel=1e-12), point
        # In sigma, the last terms cancel where their effect on Z is below the 12th digit.
        scale = [0.0, 0.0, 1e-9 * z / max(sigma, 1e-3 * background)]
        for slope, reference, tolerance in zip(
            GRADIENT(*point), exact_gradient(*point), scale, strict=True
        ):
            assert float(slope) == pytest.approx(reference, rel=1e-8, abs=tolerance), point


@pytest.mark.parametrize("sigma", [0.0, 0.4, 20.0])
def test_branches_meet(sigma):
    below, above = (np.nextafter(1.0, towards) for towards in (0.0, 1.0))
    for evaluate in (significance, GRADIENT):
        left, right = evaluate(below, 10.0, sigma), evaluate(above, 10.0, sigma)
        np.testing.assert_allclose(left, right, rtol=1e-11)


@pytest.mark.parametrize(("background", "sigma"), [(4.0, 0.0), (4.0, 3.0), (1e-3, 0.0)])
def test_no_signal(background, sigma, many_digits):
    assert float(asimov_significance(0.0, background, background_sigma=sigma)) == 0.0
    in_signal, in_background, in_sigma = GRADIENT(0.0, background, sigma)
    one_sided = exact("1e-30", background, sigma) / Decimal("1e-30")
    assert float(in_signal) == pytest.approx(float(one_sided), rel=1e-12)
    assert float(in_signal) == pytest.approx((background + sigma**2) ** -0.5, rel=1e-12)
    assert (float(in_background), float(in_sigma)) == (0.0, 0.0)


@pytest.mark.parametrize("signal", [0.0, 1e-12, 3.0])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_no_background_counts_as_the_smallest(signal, sigma, many_digits):
    smallest = objectives.SMALLEST_BACKGROUND
    assert smallest == 1e-9
    values = [
        float(asimov_significance(signal, b, background_sigma=sigma))
        for b in (0.0, 0.5e-9, smallest)
    ]
    assert values[0] == values[1] == values[2] == pytest.approx(float(exact(signal, 1e-9, sigma)))
    in_signal, in_background, in_sigma = GRADIENT(signal, 0.0, sigma)
    step = Decimal("1e-12") * (Decimal(signal) or 1) * smallest_step(signal)
    one_sided = (exact(Decimal(signal) + step, 1e-9, sigma) - exact(signal, 1e-9, sigma)) / step
    assert float(in_signal) == pytest.approx(float(one_sided), rel=1e-8)
    assert float(in_background) == 0.0  # the value does not change below the smallest either
    assert np.isfinite(in_sigma)


def smallest_step(signal):
    """At zero signal the one-sided difference must stay far below the smallest background."""
    return Decimal(1) if signal else Decimal("1e-9")


@pytest.mark.parametrize("signal", [1e-320, 1e-200, 1e-174, 1e-155, 1e-30])
@pytest.mark.parametrize("background", [0.0, 1e-200, 1.0])
def test_cut_pushed_off_the_data(signal, background):
    """Soft weights far in the tail: hardly any signal, and yet a gradient back to it."""
    for sigma in (0.0, 0.1):
        assert np.isfinite(asimov_significance(signal, background, background_sigma=sigma))
        slopes = GRADIENT(signal, background, sigma)
        assert np.all(np.isfinite(slopes))
        assert float(slopes[0]) == pytest.approx((max(background, 1e-9) + sigma**2) ** -0.5)


def test_small_uncertainty_is_none():
    without = float(asimov_significance(14.0, 5.0))
    losses = [
        without - float(asimov_significance(14.0, 5.0, background_sigma=sigma))
        for sigma in (1e-2, 2e-2)
    ]
    assert losses[1] / losses[0] == pytest.approx(4.0, rel=1e-3)
    assert float(asimov_significance(14.0, 5.0, background_sigma=1e-8)) == pytest.approx(
        without, rel=1e-13
    )
    assert float(GRADIENT(14.0, 5.0, 0.0)[2]) == 0.0
    for signal in (14.0, 1e-3):
        for sigma in (1e-100, 1e-80, 1e-40, 1e-12):
            tiny, none = GRADIENT(signal, 5.0, sigma), GRADIENT(signal, 5.0, 0.0)
            np.testing.assert_allclose(tiny, none, rtol=1e-12, atol=1e-11)


def test_bins_at_once():
    points = np.array([*PUBLISHED, (0.0, 0.0, 0.0), (1e-9, 3.0, 1.0)])
    s, b, sigma = jnp.array(points.T)
    one_by_one = [float(COMPILED(*point)) for point in points.tolist()]
    np.testing.assert_allclose(
        asimov_significance(s, b, background_sigma=sigma), one_by_one, rtol=1e-12
    )
    mapped = jax.jit(jax.vmap(lambda *x: asimov_significance(*x[:2], background_sigma=x[2])))(
        s, b, sigma
    )
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-12)
    with_one_sigma = [float(COMPILED(x, y, 0.5)) for x, y, _ in points.tolist()]
    np.testing.assert_allclose(
        asimov_significance(s, b, background_sigma=0.5), with_one_sigma, rtol=1e-12
    )
    slopes = jax.jit(jax.grad(lambda s: asimov_significance(s, b, background_sigma=sigma).sum()))(s)
    expected = [float(GRADIENT(*point)[0]) for point in points.tolist()]
    np.testing.assert_allclose(slopes, expected, rtol=1e-11)


def test_bad_yields_are_named():
    good = jnp.ones(2)
    with pytest.raises(ValueError, match=r"signal\[1\] is -1.0"):
        asimov_significance(jnp.array([1.0, -1.0]), good)
    with pytest.raises(ValueError, match=r"background\[0\] is nan"):
        asimov_significance(good, jnp.array([jnp.nan, 1.0]))
    with pytest.raises(ValueError, match=r"background_sigma is -0.5"):
        asimov_significance(good, good, background_sigma=-0.5)


LOGITS = np.array([-3.0, -0.2, 0.0, 1.5, 8.0])
LABELS = np.array([0.0, 1.0, 0.0, 1.0, 0.0])


def test_cross_entropy_is_the_formula():
    p = expit(LOGITS)
    losses = -LABELS * np.log(p) - (1 - LABELS) * np.log(1 - p)
    logits, labels = jnp.array(LOGITS), jnp.array(LABELS)
    assert float(cross_entropy(logits, labels)) == pytest.approx(losses.mean(), rel=1e-12)
    weights = np.array([0.5, 2.0, 0.0, 1.0, 3.0])
    weighted = float(cross_entropy(logits, labels, weights=jnp.array(weights)))
    assert weighted == pytest.approx(weights @ losses / weights.sum(), rel=1e-12)
    gradient = jax.grad(cross_entropy)(logits, labels)
    np.testing.assert_allclose(gradient, (p - LABELS) / 5, rtol=1e-12)


def test_cross_entropy_has_no_floor():
    """A second sigmoid would leave 0.503 for a perfect network."""
    perfect = jnp.array(np.where(LABELS == 1, 60.0, -60.0))
    assert float(cross_entropy(perfect, jnp.array(LABELS))) < 1e-20


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cross_entropy_of_extreme_logits(dtype):
    logits = jnp.array([1e4, -1e4, 1e4, -1e4], dtype=dtype)
    labels = jnp.array([1.0, 0.0, 0.0, 1.0])
    mean = cross_entropy(logits, labels)
    assert float(mean) == pytest.approx(5e3, rel=1e-12)
    assert mean.dtype == jnp.float64  # networks answer in single precision
    np.testing.assert_allclose(jax.grad(cross_entropy)(logits, labels), [0, 0, 0.25, -0.25])


def test_cross_entropy_of_a_column_is_refused():
    """A network's [events, 1] beside [events] labels would silently give events x events losses."""
    jaxtyping.config.update("jaxtyping_disable", True)  # users do not have the type checks
    try:
        with pytest.raises(ValueError, match=r"logits and labels .* \(5, 1\) and \(5,\)"):
            cross_entropy(jnp.array(LOGITS)[:, None], jnp.array(LABELS))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_discovery_has_its_closed_form_and_gradient():
    @jax.jit
    @jax.value_and_grad
    def through_the_fit(signal, mu):
        model = from_spec(shapesys(signal[None], [50.0], [5.0]))
        return objectives.log_p0(model, mu)

    @jax.value_and_grad
    def closed_form(signal, mu):
        return jax.scipy.stats.norm.logsf(
            asimov_significance(mu * signal, 50.0, background_sigma=5.0)
        )

    for mu in (1.0, 0.5):
        fitted, expected = (f(jnp.array(14.0), mu) for f in (through_the_fit, closed_form))
        np.testing.assert_allclose(fitted, expected, rtol=1e-6)


def test_limit_has_its_closed_form():
    """Without uncertainty the median CLs of signal strength mu is 2 sf(sqrt(q))."""
    s, b = 14.0, 50.0
    samples = {"signal": ([s], [MU]), "background": ([b], [])}
    model = from_spec({"channels": [channel("c", **samples)]})
    for mu in (1.0, 0.5):
        q = 2 * (mu * s - b * np.log1p(mu * s / b))
        expected = np.log(2) + norm.logsf(np.sqrt(q))
        assert float(objectives.log_cls(model, mu)) == pytest.approx(expected, rel=1e-7)


def test_measurement_has_its_closed_form():
    """Fisher information of n ~ Poisson(mu s + gamma b) and the measurement of gamma b."""
    s, b, sigma = 14.0, 50.0, 5.0
    model = from_spec(shapesys([s], [b], [sigma]))
    sigma_mu = jax.jit(diagnostics.poi_uncertainty)
    for mu in (0.0, 1.0):
        expected = np.sqrt(mu * s + b + sigma**2) / s
        assert float(sigma_mu(model, mu)) == pytest.approx(expected, rel=1e-10)


def test_rule_of_thumb():
    np.testing.assert_allclose(
        objectives.s_over_sqrt_b(np.array([2.0, 0.0]), np.array([16.0, 4.0])), [0.5, 0.0]
    )
    assert float(objectives.s_over_sqrt_b(1.0, 0.0)) == pytest.approx(1e9**0.5)
    # The limit of the full formula for little signal.
    full = asimov_significance(1e-3, 100.0)
    assert float(objectives.s_over_sqrt_b(1e-3, 100.0)) == pytest.approx(float(full), rel=1e-5)
    with pytest.raises(ValueError, match=r"signal\[1\] is -1.0"):
        objectives.s_over_sqrt_b(np.array([1.0, -1.0]), np.array([2.0, 2.0]))


def test_balanced_cross_entropy_is_a_weighted_one():
    signal, nominal, varied = (jnp.array(x) for x in ([0.3, 2.0], [-1.0, 0.5, 0.0], [4.0]))
    logits = jnp.concatenate([signal, nominal, varied])
    labels = jnp.array([1.0, 1, 0, 0, 0, 0])
    weights = jnp.array([1 / 2, 1 / 2, 1 / 6, 1 / 6, 1 / 6, 1 / 2])
    expected = cross_entropy(logits, labels, weights=weights)
    found = objectives.balanced_cross_entropy(signal, nominal, varied)
    assert float(found) == pytest.approx(float(expected), rel=1e-12)
    only = objectives.balanced_cross_entropy(signal, nominal)
    expected = cross_entropy(logits[:5], labels[:5], weights=jnp.array([1 / 2] * 2 + [1 / 3] * 3))
    assert float(only) == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(ValueError, match="backgrounds: give at least one sample"):
        objectives.balanced_cross_entropy(signal)


def test_poi_variance_is_that_of_the_model():
    """A shape and a rate uncertainty: HistFactory's Fisher information is the reference."""
    signal, background = np.array([3.0, 8.0, 2.0]), np.array([50.0, 30.0, 20.0])
    down, up = np.array([47.0, 31.0, 20.5]), np.array([53.0, 29.0, 19.5])
    model = from_spec(histosys(signal, background, down, up))
    slopes = jnp.array([signal, (up - down) / 2])
    variance = objectives.poi_variance(
        jnp.array(signal + background), slopes, widths=np.array([np.inf, 1.0])
    )
    assert float(diagnostics.poi_uncertainty(model)) == pytest.approx(
        float(variance) ** 0.5, rel=1e-9
    )
    # An empty bin changes nothing.
    wider = objectives.poi_variance(
        jnp.append(signal + background, 0.0),
        jnp.pad(slopes, ((0, 0), (0, 1))),
        widths=np.array([np.inf, 1.0]),
    )
    assert float(wider) == pytest.approx(float(variance), rel=1e-12)


def test_generalised_variance_is_the_determinant():
    model = from_spec(histosys([3.0, 8.0], [50.0, 30.0], [47.0, 31.0], [53.0, 29.0]))
    covariance = np.linalg.inv(diagnostics.information(model, model.parameters(1.0)))
    expected = np.log(np.linalg.det(covariance))
    assert float(objectives.log_generalised_variance(model)) == pytest.approx(expected, rel=1e-10)


def test_mixture_of_limit_and_discovery():
    model = from_spec(shapesys([5.0, 11.0], [50.0, 50.0], [5.0, 5.0]))
    cls, p0 = objectives.log_cls(model), objectives.log_p0(model)
    mixed = objectives.log_cls_and_p0(model, weight=0.3)
    assert float(mixed) == pytest.approx(float(0.3 * p0 + 0.7 * cls), rel=1e-12)
    assert float(cls) != pytest.approx(float(p0), rel=0.01)


def test_limit_is_where_cls_is_five_percent():
    model = from_spec(shapesys([5.0, 11.0], [50.0, 50.0], [5.0, 5.0]))
    limit = jnp.exp(objectives.log_limit(model))
    assert float(jnp.exp(objectives.log_cls(model, limit))) == pytest.approx(0.05, rel=1e-8)


@pytest.mark.parametrize("objective", [objectives.log_cls, objectives.log_p0])
def test_held_data_change_the_gradient_only(objective):
    def value(scale, hold):
        yields, background = scale * jnp.array([5.0, 11.0]), scale**2 * jnp.array([50.0, 50.0])
        return objective(from_spec(shapesys(yields, background, [5.0, 5.0])), 1.0, hold=hold)

    values, slopes = zip(*(jax.value_and_grad(value)(1.0, h) for h in (None, "data")), strict=True)
    assert float(values[0]) == float(values[1])
    assert abs(float(slopes[0] - slopes[1])) > 0.1


def test_dependence_is_the_mean_square_of_relative_changes():
    counts, slopes = jnp.array([10.0, 20.0]), jnp.array([[1.0, -4.0], [0.0, 0.0]])
    assert float(objectives.dependence(counts, slopes)) == pytest.approx((0.01 + 0.04) / 4)
    assert float(objectives.dependence(3 * counts, 3 * slopes)) == pytest.approx(0.0125)


def test_reversed_gradient():
    x = jnp.array([0.3, -2.0])
    np.testing.assert_allclose(objectives.reversed_gradient(x, strength=0.7), x, rtol=1e-15)
    for derivative in (jax.jacfwd, jax.jacrev):
        slope = derivative(lambda x: objectives.reversed_gradient(x, strength=0.7))(x)
        np.testing.assert_allclose(slope, -0.7 * np.eye(2), atol=1e-15)


def test_all_in_one_compilation():
    """jaxlib 0.10.2 loses LAPACK calls in large compilations: none of these may need one."""

    def mixture(background):
        shift = jnp.array([3.0, -1.0])
        model = from_spec(
            histosys(np.array([3.0, 8.0]), background, background - shift, background + shift)
        )
        return (
            diagnostics.poi_uncertainty(model)
            + objectives.log_generalised_variance(model)
            + objectives.log_cls(model)
            + objectives.log_p0(model)
        )

    value, gradient = jax.jit(jax.value_and_grad(mixture))(jnp.array([50.0, 30.0]))
    text = jax.jit(jax.value_and_grad(mixture)).lower(jnp.array([50.0, 30.0])).as_text()
    assert "lapack" not in text
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()
