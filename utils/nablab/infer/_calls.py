"""Functions of (model, data, ...): checked where numbers are known, compiled once per structure."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from inspect import signature
from typing import ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from nablab.infer import bounds
from nablab.model.histfactory import Model
from nablab.model.positivity import warn_of_negative

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def compiled(
    *, holds: tuple = (), tests: bool = True
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Compile a function of (model, data, ...) once per structure; check the arguments before.

    ``holds`` tells where it holds the parameter of interest: names of arguments, or numbers; and
    ``tests`` whether it compares that with a fit in which it is free.
    """
    return partial(_compiled, holds=holds, tests=tests)


def _compiled(function, *, holds, tests):
    form = signature(function)
    jitted = jax.jit(function, static_argnames={"test_statistic", "hold"} & set(form.parameters))

    @wraps(function)
    def checked(model, data, *args, **kwargs):
        model.check_data(data)
        if holds:
            given = form.bind(model, data, *args, **kwargs)
            given.apply_defaults()
            kind = given.arguments.get("test_statistic", function.__name__)
            within = non_negative(model) if kind.endswith("tilde") else model
            check_held(within, function.__name__, holds, given.arguments, tests=tests)
        else:
            warn_of_negative(model)
        return jitted(model, jnp.asarray(data, dtype=float), *args, **kwargs)

    return checked


def check_held(model, caller, holds, arguments, *, tests=True) -> None:
    """Raise ``ValueError`` where a signal strength that is to be held is out of bounds, or where
    one that is to be tested is not free; warn of a model whose fits are not to be trusted."""
    warn_of_negative(model)
    for held in holds:
        if isinstance(held, str):
            bounds.check(model, model.poi_index, held, arguments[held])
        else:
            bounds.check(model, model.poi_index, f"the signal strength for {caller}", held)
    if tests:
        bounds.check_free(model, model.poi_index, "test it")


def non_negative(model: Model) -> Model:
    """The model with a parameter of interest of at least 0."""
    return replace(model, lower=model.lower.at[model.poi_index].max(0.0))
