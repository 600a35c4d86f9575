"""The deviance where a search has ended, with all its derivatives: nothing is searched again.

At a minimum over the other parameters, the slope of the deviance in anything else is the same as
if these stood still (the envelope theorem). How they move is needed for second derivatives only,
and is then implicit in the gradient staying zero, as in :mod:`nablab.infer.minimizer`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nablab.indexing import put
from nablab.infer import _profile
from nablab.infer._plan import plan
from nablab.infer.certificates import Fit
from nablab.infer.minimizer import lowest
from nablab.model.histfactory import Model


def lowest_deviance(
    model: Model, data: Float[Array, "data"], poi: Float[Array, ""], fit: Fit
) -> Float[Array, ""]:
    """The value of ``fit``, a minimum with the parameter of interest held at ``poi``, as a
    function of the model, the data and ``poi``. How it was found does not count."""
    shared = plan(model.structure).shared
    fitted = shared[shared != model.poi_index]
    end = jax.lax.stop_gradient(fit)
    start = model.init.at[model.poi_index].set(poi)
    x = end.parameters[fitted]
    bound = jnp.where(x >= model.upper[fitted], model.upper[fitted], model.lower[fitted])
    rest = jnp.where(model.fixed[fitted], model.init[fitted], bound)
    active = model.fixed[fitted] | end.certificate.at_bound[fitted]
    # Plain arrays: the tangents of a model are not a model.
    args, tree = jax.tree.flatten((model, data, start))

    def function(x, *args):
        model, data, start = tree.unflatten(args)
        return _profile.deviance(model, data, put(start, fitted, x))

    def expansion(x, *args):
        model, data, start = tree.unflatten(args)
        return _profile.expansion(model, data, put(start, fitted, x), fitted)

    return lowest(function, expansion, end.value, x, active, rest, args)
