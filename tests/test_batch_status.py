"""In a batch it is known of each item whether its fits found a minimum, and what is wrong."""

import importlib
import pkgutil
from dataclasses import fields, is_dataclass, replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from nablab import infer
from nablab.infer import (
    hypotests,
    intervals,
    limits,
    mle,
    pseudoexperiments,
    test_statistics,
    toy_hypotests,
)
from nablab.infer.certificates import Certificate, Status
from nablab.infer.limits import LimitStatus
from nablab.model.histfactory import from_spec

KEY = jax.random.key(2)
# The second of three models has no signal: no fit of its strength.
SIGNALS = jnp.array([[5.0], [0.0], [6.0]])


def counting(signal):
    return from_spec(models.shapesys(signal, [50.0], [5.0]))


def data_of(model):
    return jnp.concatenate([jnp.array([53.0]), model.auxdata])


RESULTS = {
    "fit": lambda model: mle.best_fit(model, data_of(model)),
    "certificate": lambda model: mle.best_fit(model, data_of(model)).certificate,
    "statistic": lambda model: test_statistics.tmu(model, data_of(model), 1.0),
    "cls": lambda model: hypotests.cls(model, data_of(model)),
    "p0": lambda model: hypotests.p0(model, data_of(model)),
    "profile": lambda model: mle.profile_scan(model, data_of(model), jnp.array([0.5, 1.0])),
    "limit": lambda model: limits.upper_limit(model, data_of(model)),
}


@pytest.fixture(scope="module")
def found():
    return jax.jit(
        jax.vmap(
            lambda signal: {name: result(counting(signal)) for name, result in RESULTS.items()}
        )
    )(SIGNALS)


@pytest.mark.parametrize("name", RESULTS)
def test_each_item_of_a_batch(found, name):
    result = found[name]
    np.testing.assert_array_equal(result.converged, [True, False, True])
    said = "without effect" if name != "limit" else "no upper limit: .* raise that bound"
    with pytest.raises(RuntimeError, match=rf"1 of 3 failed; the first is \[1\]: .*{said}"):
        result.require()
    first = jax.tree.map(lambda field: field[0], result)
    assert first.require() is first
    with pytest.raises(RuntimeError, match=r"^(fit failed|no upper limit)"):
        jax.tree.map(lambda field: field[1], result).require()


def test_the_fits_at_the_limits_count(found):
    """One fit among the seven of an item, where all limits were found."""
    limit = jax.tree.map(lambda field: field[::2], found["limit"])
    assert limit.require() is limit
    *others, last = limit.certificates
    broken = replace(last, status=last.status.at[1, 4].set(Status.NOT_CONVERGED))
    limit = replace(limit, certificates=(*others, broken))
    np.testing.assert_array_equal(limit.converged, [True, False])
    with pytest.raises(RuntimeError, match=r"1 of 2 failed; the first is \[1\]: fit failed.*stuck"):
        limit.require()


def test_the_first_failure_is_told_not_the_worst():
    status = jnp.array([Status.CONVERGED, Status.NOT_CONVERGED, Status.NOT_FINITE])
    numbers = jnp.array([0.0, 3e-4, jnp.nan])
    flattest, at_bound = jnp.zeros((3, 1)), jnp.zeros((3, 1), bool)
    certificate = Certificate(status, numbers, numbers, flattest, at_bound, status, flattest)
    with pytest.raises(
        RuntimeError, match=r"2 of 3 failed; the first is \[1\]: .*gradient norm 3.0e-04"
    ):
        certificate.require()


def test_every_result_with_fits_has_converged_and_require():
    """All dataclasses of the room that hold a certificate, or statuses, whatever the file."""
    holders = {"Fit", "Certificate", "Posterior"}
    for file in pkgutil.iter_modules(infer.__path__):
        room = importlib.import_module(f"nablab.infer.{file.name}")
        for name, thing in vars(room).items():
            if is_dataclass(thing) and isinstance(thing, type):
                words = " ".join(f"{field.name} {field.type}" for field in fields(thing))
                if name in holders or any(w in words for w in ("ertificate", "best_fit", "status")):
                    holders.add(name)
                    assert isinstance(thing.converged, property), name
                    assert callable(thing.require), name
    expected = {"TestStatistic", "PValues", "UpperLimit", "Profile", "Interval", "Toys"}
    assert holders >= expected | {"ToyPValues"}


def test_inside_jit_require_says_what_to_do():
    model = counting([5.0])
    with pytest.raises(TypeError, match="return `converged` beside the numbers"):
        jax.jit(lambda data: hypotests.cls(model, data).require().observed)(data_of(model))


def test_toys_and_intervals_that_converged():
    model = counting([5.0])
    toys = pseudoexperiments.distribution(
        test_statistics.qmu, model, model.init, key=KEY, toys=20, mu=1.0, progress=False
    )
    assert toys.converged and toys.require() is toys
    status = toys.statuses.at[7].set(Status.NOT_CONVERGED)
    toys = replace(toys, statuses=status)
    assert not toys.converged
    with pytest.raises(RuntimeError, match=r"1 of 20 failed; the first is \[7\]: .*out of iter"):
        toys.require()
    number, points = jnp.zeros(()), jnp.zeros(2)
    good = intervals.Interval(*[number] * 5, points, points, points, jnp.zeros(2, int), ())
    assert good.converged and good.require() is good
    assert not replace(good, failed=jnp.array([0, 3])).converged
    p = toy_hypotests.ToyPValues(number, number, jnp.zeros(5), toys, toys, ())
    assert not p.converged


def test_status_beside_value_and_gradient_of_a_limit():
    """In one call; the second model has a signal that its bound of 10 is too low for."""

    def observed(signal):
        model = counting(signal)
        limit = limits.upper_limit(model, data_of(model))
        return limit.observed, limit

    both = jax.jit(jax.vmap(jax.value_and_grad(observed, has_aux=True)))
    (value, limit), slope = both(jnp.array([[5.0], [0.5]]))
    np.testing.assert_array_equal(jnp.isfinite(value), [True, False])
    np.testing.assert_array_equal(jnp.isfinite(slope[:, 0]), [True, False])
    np.testing.assert_array_equal(limit.converged, [True, False])
    assert limit.status[1, 0] == LimitStatus.BEYOND_BOUND
    with pytest.raises(RuntimeError, match=r"1 of 2 failed; the first is \[1\]: .*raise that"):
        limit.require()
    # Of the limit in units of the signal there is only one.
    np.testing.assert_allclose(slope[0, 0], -value[0] / 5.0, rtol=1e-6)
