"""What a training minimises (or, for a significance, maximises). Expected data only.

An objective of a training is a plain function ``objective(params, events) -> scalar``. The
functions here are its last step: from yields, or from a likelihood, to one number. One number does
not say whether the fits behind it have converged: ask that of the result that is quoted, with
``require()``.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from nablab import checks
from nablab.checks import Numbers
from nablab.infer import diagnostics, hypotests, limits, linalg
from nablab.model.histfactory import Model
from nablab.model.positivity import varied_rates

# Fewer background events than this count as this many: the formula diverges at 0.
SMALLEST_BACKGROUND = 1e-9
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


def cross_entropy(
    logits: Float[Numbers, "events"],
    labels: Float[Numbers, "events"],
    *,
    weights: Float[Numbers, "events"] | None = None,
) -> Float[Array, ""]:
    """Weighted mean binary cross-entropy.

    Args:
        logits: output of the network *before* the sigmoid.
        labels: 1 for signal, 0 for background.
        weights: event weights; equal where absent.

    Raises:
        ValueError: ``logits`` and ``labels`` differ in shape: every event would meet every label.
    """
    if jnp.shape(logits) != jnp.shape(labels):
        raise ValueError(
            f"logits and labels must have the same shape, got {jnp.shape(logits)} and "
            f"{jnp.shape(labels)}"
        )
    losses = optax.sigmoid_binary_cross_entropy(logits.astype(float), labels)
    return jnp.average(losses, weights=weights)


def asimov_significance(
    signal: Float[Numbers, "*bins"] | float,
    background: Float[Numbers, "*bins"] | float,
    *,
    background_sigma: Float[Numbers, "*bins"] | float = 0.0,
) -> Float[Array, "*bins"]:
    """Median discovery significance of a counting experiment, in standard deviations.

    Args:
        signal: expected signal events.
        background: expected background events; fewer than 1e-9 count as 1e-9, where the estimate
            has lost its meaning (and its gradient in ``background``).
        background_sigma: absolute uncertainty of the background, in events.

    Returns:
        The significance of eq. 97 of arXiv:1007.1727, or with an uncertainty that of
        G. Cowan's note of 2012 (eq. 20; arXiv:1806.00322, eq. 3). Combine bins in quadrature.

    Raises:
        ValueError: an entry is negative or not finite. Under ``jit``, ``grad`` and ``vmap``, where
            the values are not known, the significance of such a bin is NaN, and so is its
            gradient: negative weights in a bin ask for wider bins, not for a number.
    """
    known = checks.expected(signal=signal, background=background, background_sigma=background_sigma)
    s, b = jnp.asarray(signal, dtype=float), jnp.maximum(background, SMALLEST_BACKGROUND)
    variance = jnp.asarray(background_sigma, dtype=float) ** 2

    # Z^2 = 2 int_0^s log(1 + slope(t) t) dt. For few signal events the closed form is a small
    # difference of large numbers, and the integral by quadrature keeps all digits.
    def slope(t):
        return b / (b * (b + variance) + variance * t)

    # Where one takes over both are right: a compiler that works s and b out twice may find other
    # last digits the second time.
    some, many = jnp.where(s < 0.2 * b, s, 0.0), jnp.where(s > 0.05 * b, s, b)
    square = jnp.zeros(jnp.broadcast_shapes(s.shape, b.shape, variance.shape))
    for node, weight in zip((_NODES + 1) / 2, _WEIGHTS, strict=True):
        y = slope(node * some) * node * some
        safe = jnp.where(y > 1e-9, y, 1.0)
        log_over_y = jnp.where(y > 1e-8, jnp.log1p(safe) / safe, 1.0 - y / 2)
        square = square + weight * node * slope(node * some) * log_over_y
    from_integral = some * jnp.sqrt(square)

    u = variance * many / (b * (b + variance))
    safe = jnp.where(u > 1e-9, u, 1.0)
    log_over_u = jnp.where(u > 1e-8, jnp.log1p(safe) / safe, 1.0 - u / 2)
    closed = (many + b) * jnp.log1p(slope(many) * many) - b * many / (b + variance) * log_over_u
    return jnp.where(s < 0.1 * b, from_integral, jnp.sqrt(2.0 * closed)) * known


def s_over_sqrt_b(
    signal: Float[Numbers, "*bins"] | float, background: Float[Numbers, "*bins"] | float
) -> Float[Array, "*bins"]:
    """The rule of thumb for a significance: for S far below B, and without uncertainties.

    Fewer than 1e-9 background events count as 1e-9, as in :func:`asimov_significance`.

    Raises:
        ValueError: an entry is negative or not finite; NaN under ``jit``, as there.
    """
    known = checks.expected(signal=signal, background=background)
    root = jnp.sqrt(jnp.maximum(background, SMALLEST_BACKGROUND))
    return jnp.asarray(signal, dtype=float) / root * known


def balanced_cross_entropy(
    signal: Float[Numbers, "_"], *backgrounds: Float[Numbers, "_"]
) -> Float[Array, ""]:
    """Cross-entropy with equal total weight of signal and background.

    Args:
        signal: output of the network, before the sigmoid, for signal events.
        backgrounds: the same for background events. Several samples share the weight: with the
            systematic variations beside the nominal one, this is training with augmented data.

    Raises:
        ValueError: no background.
    """
    if not backgrounds:
        raise ValueError("backgrounds: give at least one sample")
    losses = [jnp.mean(jax.nn.softplus(logits.astype(float))) for logits in backgrounds]
    return jnp.mean(jax.nn.softplus(-signal.astype(float))) / 2 + sum(losses) / (2 * len(losses))


def poi_variance(
    counts: Float[Array, "bins"],
    slopes: Float[Array, "parameters bins"],
    *,
    widths: Float[Numbers, "parameters"] | None = None,
) -> Float[Array, ""]:
    """INFERNO: variance of the first parameter, all others profiled (arXiv:1806.04743).

    Args:
        counts: expected events of each bin; empty bins hold no information.
        slopes: derivative of the counts in each parameter, that of interest first. For nuisance
            parameters that move events it comes from ``jax.jacfwd``.
        widths: standard deviation of the constraint of each parameter, infinite where there is
            none; all infinite if absent.

    Returns:
        The element of the inverse Fisher information, in units of the parameter squared; infinite
        where the bins do not determine all parameters.

    Raises:
        ValueError: a count is negative or not finite; NaN under ``jit``.
    """
    known = checks.expected(counts=counts)
    filled = counts > 0
    weights = jnp.where(filled, 1.0 / jnp.where(filled, counts, 1.0), 0.0)
    information = (slopes * weights * known) @ slopes.T
    if widths is not None:
        information += jnp.diag(1.0 / jnp.asarray(widths) ** 2)
    return linalg.inverse(information)[0, 0]


def log_cls(
    model: Model, mu: Float[Numbers, ""] | float = 1.0, *, hold: str | None = None
) -> Float[Array, ""]:
    """Logarithm of the median expected CLs of signal strength ``mu``: small is a strong limit.

    ``hold`` says where the gradient stops in the Asimov data, see ``hypotests.asimov_data``.
    """
    return jnp.log(hypotests.expected_cls(model, mu, hold=hold).median)


def log_p0(
    model: Model, mu: Float[Numbers, ""] | float = 1.0, *, hold: str | None = None
) -> Float[Array, ""]:
    """Logarithm of the median discovery p-value expected for signal strength ``mu``."""
    return jnp.log(hypotests.expected_p0(model, mu, hold=hold).median)


def log_cls_and_p0(
    model: Model, mu: Float[Numbers, ""] | float = 1.0, *, weight: Float[Numbers, ""] | float = 0.5
) -> Float[Array, ""]:
    """A limit and a discovery at once: ``weight`` log p0 + (1 - ``weight``) log CLs."""
    return weight * log_p0(model, mu) + (1 - weight) * log_cls(model, mu)


def log_limit(model: Model, *, confidence: Float[Numbers, ""] | float = 0.95) -> Float[Array, ""]:
    """Logarithm of the median expected upper limit on the signal strength."""
    return jnp.log(limits.expected_upper_limit(model, confidence=confidence).median)


def log_generalised_variance(
    model: Model, mu: Float[Numbers, ""] | float = 1.0
) -> Float[Array, ""]:
    """Logarithm of the determinant of the expected covariance of all free parameters at ``mu``.

    The volume of the joint confidence region: small if signal strength *and* nuisance parameters
    are measured well, which is not always wanted (D-optimality; over-constraints).
    """
    information = diagnostics.information(model, model.parameters(mu))
    return -linalg.log_determinant(information + jnp.diag(model.fixed * 1.0))


def negative_rates(
    model: Model, *, floor: Float[Numbers, ""] | float = 0.0, points: int = 21
) -> Float[Array, ""]:
    """How much less than nothing the model expects between its simulated points: a penalty.

    The square of what bins fall below ``floor`` without signal, summed over them and averaged over
    values of each interpolated parameter within one standard deviation; 0 where none does. An
    optimiser that may move the templates finds the places where their interpolation is negative,
    since a fit takes the wall there for a measurement.

    Args:
        model: the likelihood.
        floor: fewest events that a bin may expect.
        points: values of each parameter.
    """
    rates = varied_rates(model, jnp.linspace(-1.0, 1.0, points))
    return jnp.sum(jnp.maximum(floor - rates, 0.0) ** 2) / points


def dependence(
    counts: Float[Array, "bins"], slopes: Float[Array, "parameters bins"]
) -> Float[Array, ""]:
    """How much a histogram moves with nuisance parameters: a penalty beside an objective.

    The mean over bins and parameters of the squared relative change per standard deviation; 0 where
    the histogram knows nothing of them (Wunsch et al., Comput. Softw. Big Sci. 4 (2020) 5, with the
    derivative in the place of their difference). It asks for more than the result needs: see
    notebook 10.

    Args:
        counts: expected events of each bin, all above 0.
        slopes: derivative of the counts in each nuisance parameter, in units of its uncertainty.

    Raises:
        ValueError: a count is not positive or not finite; under ``jit`` the penalty is NaN for a
            negative one.
    """
    checks.positive("counts", counts)
    return jnp.mean((slopes / counts) ** 2) * checks.one_if(jnp.all(counts >= 0))


def reversed_gradient(
    x: Float[Array, "*shape"], *, strength: Float[Numbers, ""] | float = 1.0
) -> Float[Array, "*shape"]:
    """``x``, with its derivative multiplied by ``-strength``: what an adversary feeds on.

    An adversary that minimises its own loss on ``reversed_gradient(observable)`` makes the network
    behind the observable maximise it, in one training (Ganin and Lempitsky, arXiv:1409.7495;
    against nuisance parameters: Louppe, Kagan and Cranmer, arXiv:1611.01046).
    """
    return (1 + strength) * jax.lax.stop_gradient(x) - strength * x
