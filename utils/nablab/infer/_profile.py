"""The likelihood as a fit sees it: fewer parameters, and derivatives that know their structure.

Putting in the best gammas, which act in one bin only, leaves the *profile* deviance of the global
parameters: the Schur complement of an arrowhead Hessian, exactly, at a cost linear in the bins.
Where the tables of parameters and cells that this takes are large, the bins are gone through in
blocks.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nablab.indexing import put
from nablab.infer import _cells, _per_bin
from nablab.infer._plan import Plan, blocks, plan
from nablab.model.histfactory import Model
from nablab.pytrees import pytree

# Tables with more entries are made for blocks of so many cells.
LARGE_TABLE = 1_000_000
BLOCK = 1024


@pytree(static=("plan",))
class ProfileLikelihood:
    """Deviance minimised over the gammas, as a function of the fitted parameters.

    What is not fitted, and gammas that the model fixes, have the values of ``start``.
    """

    model: Model
    data: Float[Array, "data"]
    start: Float[Array, "parameters"]
    plan: Plan

    def parameters(self, x: Float[Array, "fitted"]) -> Float[Array, "parameters"]:
        """All parameters, the gammas left as they are."""
        return put(self.start, self.plan.at, x)

    def _at_best(self, x) -> _per_bin.AtBest:
        parameters, plan = self.parameters(x), self.plan
        without = jnp.where(plan.is_gamma, 1.0, parameters) if plan.levels else parameters
        cells = self.model.expected_by_cell(without)
        return _per_bin.best(self.model, self.data, plan.levels, parameters, cells)

    def complete(self, x: Float[Array, "fitted"]) -> Float[Array, "parameters"]:
        """All parameters, the gammas at their best."""
        return self._at_best(x).parameters

    def value(self, x: Float[Array, "fitted"]) -> Float[Array, ""]:
        """The profile deviance."""
        best = self._at_best(x)
        rates = _per_bin.scaled(best.sums, best.gammas)
        return self.model.deviance_at(rates, best.parameters, self.data)

    def expansion(
        self, x: Float[Array, "fitted"], curved: Float[Array, ""] | float = 1.0
    ) -> tuple[Float[Array, ""], Float[Array, "fitted"], Float[Array, "fitted fitted"]]:
        """The profile deviance, its gradient and its Hessian.

        With ``curved`` at 0 the expected events are taken for straight lines in the Hessian, which
        is then positive however far the data are from the model (Fisher scoring).
        """
        model, plan, s = self.model, self.plan, self.model.structure
        if len(plan.fitted) * len(s.cell_bin) > LARGE_TABLE:
            return self._expansion_in_blocks(x, curved)
        parameters = self.parameters(x)
        cells, cell_slopes, cell_curvature = _cells.expand(model, plan, parameters)
        best = _per_bin.best(model, self.data, plan.levels, parameters, cells)
        rates = _per_bin.scaled(best.sums, best.gammas)
        slope, curvature = model.rate_slopes(rates, self.data)
        by_cell = slope[s.cell_bin]
        for level, gamma in zip(plan.levels, best.gammas, strict=True):
            by_cell = jnp.where(level.scales, gamma[s.cell_bin], 1.0) * by_cell
        sum_slopes = jax.vmap(lambda cells: _per_bin.by_level(model, plan.levels, cells))
        sum_slopes = jnp.moveaxis(sum_slopes(cell_slopes), 0, -2)
        pairs = _per_bin.second_derivatives(best, slope, curvature, sum_slopes)
        hessian = sum((slopes * weight) @ slopes.T for weight, slopes in pairs)
        own_slope, own_curvature = model.constraint_slopes(best.parameters, self.data)
        gradient = cell_slopes @ by_cell + own_slope[plan.at]
        hessian = hessian + jnp.diag(own_curvature[plan.at])
        mixed_logs, pieces = cell_curvature(curved * by_cell)
        hessian = pieces.add_to(hessian + mixed_logs, plan)
        return model.deviance_at(rates, best.parameters, self.data), gradient, hessian

    def _expansion_in_blocks(self, x, curved):
        """:meth:`expansion`, a block of bins after the other.

        In each bin the deviance is a function of a few sums of events, by which levels scale them,
        and it has a small matrix of second derivatives in these.
        """
        # Tables of differences, the same for all iterations, would be kept beside the model's.
        self, x = jax.lax.optimization_barrier((self, x))
        model, data, best, parameters = self.model, self.data, self._at_best(x), self.parameters(x)
        rates = _per_bin.scaled(best.sums, best.gammas)
        s, plan, size = model.structure, self.plan, len(self.plan.fitted)
        b = blocks(s, BLOCK)
        slope, curvature = model.rate_slopes(rates, data)

        # Derivatives in these sums; those that no cell is part of are left out.
        place, parts = np.searchsorted(b.parts, b.part), len(b.parts)
        units = np.eye(2 ** len(plan.levels))[:, list(b.parts)]
        units = units.reshape(*(2 for _ in plan.levels), parts, 1)
        by_sum = slope * jnp.broadcast_to(_per_bin.scaled(units, best.gammas), (parts, s.main_bins))
        pairs = _per_bin.second_derivatives(best, slope, curvature, units)
        twice_by_sum = sum(weight * slopes[:, None] * slopes for weight, slopes in pairs)
        twice_by_sum = jnp.broadcast_to(twice_by_sum, (parts, parts, s.main_bins))

        def add(totals, block):
            cells, counted, bins = block
            part = jnp.asarray(place)[cells]
            weights = jnp.where(counted, by_sum[part, bins], 0.0).reshape(-1)
            _, slopes, curvature = _cells.expand(model, plan, parameters, cells=cells.reshape(-1))
            slopes_3d = slopes.reshape(size, *cells.shape)
            sum_slopes = [
                jnp.where(counted & (part == k), slopes_3d, 0.0).sum(axis=1) for k in range(parts)
            ]
            bent = [sum(row[k][bins] * sum_slopes[k] for k in range(parts)) for row in twice_by_sum]
            of_bins = jnp.concatenate(bent, axis=1) @ jnp.concatenate(sum_slopes, axis=1).T
            gradient, hessian, pieces = totals
            mixed_logs, more = curvature(curved * weights)
            hessian = hessian + of_bins + mixed_logs
            return (gradient + slopes @ weights, hessian, jax.tree.map(jnp.add, pieces, more)), None

        own_slope, own_curvature = model.constraint_slopes(best.parameters, data)
        factors = plan.factor_count
        pieces = jnp.zeros((factors, factors)), jnp.zeros((size, factors))
        pieces = _cells.Curvature(own_curvature[plan.at], *pieces)
        start = own_slope[plan.at], jnp.zeros((size, size)), pieces
        (gradient, hessian, pieces), _ = jax.lax.scan(add, start, (b.cells, b.counted, b.bins))
        value = model.deviance_at(rates, best.parameters, data)
        return value, gradient, pieces.add_to(hessian, plan)


def profile_likelihood(model: Model, data, start, *, held=()) -> ProfileLikelihood:
    """The profile likelihood of a fit with the parameters at ``held`` held at those of ``start``,
    or of all global ones."""
    return ProfileLikelihood(model, data, start, plan(model.structure, tuple(sorted(held))))


# As :func:`nablab.infer.minimizer.minimize` calls them.
def value(x, likelihood: ProfileLikelihood):
    """:meth:`ProfileLikelihood.value`."""
    return likelihood.value(x)


def expansion(x, likelihood: ProfileLikelihood, **options):
    """:meth:`ProfileLikelihood.expansion`."""
    return likelihood.expansion(x, **options)
