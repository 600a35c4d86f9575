"""Samples of the posterior of a HistFactory model, by Hamiltonian Monte Carlo.

Needs the optional extra ``posterior`` (blackjax). The sampler is the No-U-Turn Sampler
(arXiv:1111.4246), whose step size and metric are tuned by window adaptation (Stan's warm-up).
"""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from nablab import checks
from nablab.checks import Numbers
from nablab.extras import needs
from nablab.infer.diagnostics import covariance
from nablab.infer.mle import best_fit
from nablab.model.histfactory import Model
from nablab.pytrees import pytree

BLOCK = 100  # draws of each chain between two movements of the progress bar
LARGEST_R_HAT = 1.01  # arXiv:1903.08008, section 2


@pytree
class Posterior:
    """Samples of the posterior, and what is known about their quality.

    Attributes:
        samples: parameters in the order of the model; the fixed ones stay at their values.
        r_hat: rank-normalised split R-hat of each parameter (arXiv:1903.08008, eq. 14): 1 where
            all chains tell the same; 1 for a fixed parameter.
        effective_samples: how many independent samples tell as much, in the bulk or in the tails,
            whichever is less; all of them for a fixed parameter.
        divergences: steps of each chain whose trajectory could not be followed: the sampler does
            not reach a part of the posterior near there.
    """

    samples: Float[Array, "chains draws parameters"]
    r_hat: Float[Array, "parameters"]
    effective_samples: Float[Array, "parameters"]
    divergences: Int[Array, "chains"]

    @property
    def converged(self) -> Bool[Array, ""]:
        """Whether R-hat is at most 1.01 for every parameter, and no step has diverged."""
        return (self.r_hat.max() <= LARGEST_R_HAT) & (self.divergences.sum() == 0)

    def require(self) -> "Posterior":
        """Raise ``RuntimeError`` unless chains agree and follow the posterior; return the samples.

        R-hat has to be at most 1.01 for every parameter, and no step may diverge.
        """
        worst, divergences = float(self.r_hat.max()), int(self.divergences.sum())
        if not self.converged:  # also where R-hat is NaN
            raise RuntimeError(
                f"the samples are not those of the posterior: R-hat is {worst:.3f}, and "
                f"{divergences} steps diverged. A longer warmup may help"
            )
        return self


def sample(
    model: Model,
    data: Float[Numbers, "data"],
    *,
    key: PRNGKeyArray,
    chains: int = 4,
    draws: int = 1_000,
    warmup: int = 1_000,
    progress: bool = True,
) -> Posterior:
    """Draw parameters from their posterior given the data.

    The prior is flat within the bounds for parameters without constraint, such as the parameter of
    interest; for the others it is flat within the bounds, times the constraint term with the
    measured auxiliary data. So the posterior is ``exp(model.logpdf)`` as a function of the
    parameters, normalised within the bounds.

    Chains start around the best fit, about twice as far from it as the posterior is wide. They run
    in coordinates without bounds. Does not work under ``jit``, ``grad`` or ``vmap``: a Python loop
    shows the progress.

    Args:
        model: the likelihood.
        data: main and auxiliary measurements, in pyhf's order.
        key: random key.
        chains: how many, side by side; at least 2, so that they can be compared.
        draws: samples of each chain.
        warmup: steps before, in which the sampler is tuned; they are thrown away.
        progress: show a progress bar.

    Returns:
        The samples, those done so far if interrupted. Call ``require()`` before believing them.

    Raises:
        ModuleNotFoundError: blackjax is not installed.
        ValueError: bounds that are not finite, fewer than 2 chains or 4 draws, no free parameter,
            or data that do not fit the model.
    """
    with needs("posterior"):
        import blackjax  # noqa: F401
    free = _checked(model, chains, draws)
    data = jnp.asarray(data, dtype=float)
    best = best_fit(model, data)
    start_key, warmup_key, draw_key = jax.random.split(key, 3)
    starts = _starts(model, best.parameters, free, start_key, chains)
    from tqdm.auto import tqdm

    with tqdm(total=draws, unit="draw", disable=not progress, leave=False) as bar:
        bar.set_description("warm-up")
        keys = jax.random.split(warmup_key, chains)
        states, *tuned = jax.block_until_ready(_warm_up(model, data, free, keys, starts, warmup))
        bar.set_description("draws")
        blocks = _blocks(model, data, free, draw_key, states, tuned, draws, bar)
    samples, diverged = (
        jnp.asarray(np.concatenate(parts, axis=1)[:, :draws]) for parts in zip(*blocks, strict=True)
    )
    r_hat, effective_samples = _quality(samples, free)
    return Posterior(samples, r_hat, effective_samples, diverged.sum(axis=1))


def _checked(model, chains, draws) -> tuple[int, ...]:
    """The free parameters; ``ValueError`` where there is nothing to sample."""
    if chains < 2 or draws < 4:
        raise ValueError(f"chains is {chains} and draws {draws}: at least 2 and 4 are needed")
    checks.finite("the lower bounds of the model", model.lower)
    checks.finite("the upper bounds of the model", model.upper)
    free = tuple(np.flatnonzero(~np.asarray(model.fixed)).tolist())
    if not free:
        raise ValueError("all parameters of the model are fixed: nothing to sample")
    return free


def _blocks(model, data, free, key, states, tuned, draws, bar):
    """Blocks of draws of all chains, those done so far if interrupted."""
    chains, blocks = len(states.position), []
    try:
        for first in range(0, draws, BLOCK):
            keys = jax.random.split(jax.random.fold_in(key, first), chains)
            states, block = _draw(model, data, free, keys, states, *tuned)
            blocks.append(jax.device_get(block))  # waits for it
            bar.update(min(BLOCK, draws - first))
    except KeyboardInterrupt:
        if not blocks:
            raise
        done = min(draws, BLOCK * len(blocks))
        warnings.warn(f"interrupted: {done} of {draws} draws are done, and kept", stacklevel=3)
    return blocks


def credible_interval(
    samples: Float[Numbers, "chains draws *parameters"], *, confidence: float = 0.68
) -> Float[Array, "2 *parameters"]:
    """Lower and upper end of the highest-density interval, for each parameter on its own.

    It is the shortest interval that holds a fraction ``confidence`` of the samples. Unlike the
    equal-tailed one it begins at the bound if the posterior is highest there: an upper limit. It
    depends on the choice of the parameter: that of mu squared is another.

    Raises:
        ValueError: a confidence that is not between 0 and 1.
    """
    checks.fraction("confidence", confidence)
    samples = jnp.asarray(samples)
    ordered = jnp.sort(samples.reshape(-1, *samples.shape[2:]), axis=0)
    inside = int(np.ceil(confidence * len(ordered)))
    lengths = ordered[inside - 1 :] - ordered[: len(ordered) - inside + 1]
    first = jnp.argmin(lengths, axis=0, keepdims=True)
    ends = [jnp.take_along_axis(ordered, first + step, axis=0) for step in (0, inside - 1)]
    return jnp.concatenate(ends)


@partial(jax.jit, static_argnames="free")
def _quality(samples, free):
    """R-hat and effective sample size of each parameter."""
    from blackjax import diagnostics

    chains, draws, parameters = samples.shape
    sampled = samples[:, :, free]
    fewest = jnp.minimum(diagnostics.ess_bulk(sampled), diagnostics.ess_tail(sampled))
    r_hat = jnp.ones(parameters).at[free,].set(diagnostics.rhat(sampled))
    return r_hat, jnp.full(parameters, 1.0 * chains * draws).at[free,].set(fewest)


def _log_density(model, data, free):
    """Log-density of the free parameters in coordinates without bounds."""

    def log_density(z):
        parameters, log_volume = _inside(model, free, z)
        return log_volume - 0.5 * model.deviance(parameters, data)

    return log_density


def _inside(model, free, z):
    """Parameters from coordinates without bounds, and the logarithm of the Jacobian determinant."""
    lower, upper = model.lower[free,], model.upper[free,]
    values = lower + (upper - lower) * jax.nn.sigmoid(z)
    log_slopes = jnp.log(upper - lower) + jax.nn.log_sigmoid(z) + jax.nn.log_sigmoid(-z)
    return model.init.at[free,].set(values), log_slopes.sum()


def _starts(model, best, free, key, chains):
    """Starting points of the chains, in coordinates without bounds."""
    lower, upper = model.lower[free,], model.upper[free,]
    variances = jnp.diagonal(covariance(model, best))[free,]
    # A direction without effect on the data has no variance: start it anywhere.
    known = jnp.isfinite(variances) & (variances > 0)
    widths = jnp.where(known, jnp.sqrt(jnp.where(known, variances, 1.0)), upper - lower)
    values = best[free,] + 2.0 * widths * jax.random.normal(key, (chains, len(free)))
    values = lower + jnp.abs(values - lower)  # reflected at the bounds
    values = upper - jnp.abs(upper - values)
    place = jnp.clip((values - lower) / (upper - lower), 1e-6, 1.0 - 1e-6)
    return jnp.log(place) - jnp.log1p(-place)


@partial(jax.jit, static_argnames=("free", "steps"))
def _warm_up(model, data, free, keys, starts, steps):
    """State of each chain after the warm-up, and the step size and metric found in it."""
    import blackjax
    from blackjax.adaptation.base import get_filter_adapt_info_fn

    adaptation = blackjax.window_adaptation(
        blackjax.nuts,
        _log_density(model, data, free),
        adaptation_info_fn=get_filter_adapt_info_fn(),  # keep nothing of the way
    )

    def chain(key, start):
        (state, tuned), _ = adaptation.run(key, start, steps)
        return state, tuned["step_size"], tuned["inverse_mass_matrix"]

    return jax.vmap(chain)(keys, starts)


@partial(jax.jit, static_argnames="free")
def _draw(model, data, free, keys, states, step_sizes, metrics):
    """The next draws of each chain: final state, and (parameters, whether the step diverged)."""
    import blackjax

    log_density = _log_density(model, data, free)

    def chain(key, state, step_size, metric):
        step = blackjax.nuts(log_density, step_size, metric).step

        def one(state, key):
            state, info = step(key, state)
            parameters, _ = _inside(model, free, state.position)
            return state, (parameters, info.is_divergent)

        return jax.lax.scan(one, state, jax.random.split(key, BLOCK))

    return jax.vmap(chain)(keys, states, step_sizes, metrics)
