"""A program as users write it, for the type checker: nothing here is run.

Every line that is marked with ``type: ignore`` is a mistake that the checker has to find.
"""

from typing import assert_type

import jax
import numpy as np
import optax

from nablab import data, infer, judge, model, relax, show, train


def likelihood(params: jax.Array, events: dict[str, jax.Array]) -> model.Model:
    counts = relax.kde_counts(events["signal"][:, 0] * params, np.linspace(0, 1, 6), bandwidth=0.1)
    assert_type(counts, relax.Counts)
    background = relax.hard_counts([0.2, 0.3], [0.0, 0.5, 1.0], weights=np.ones(2))
    spread = background.variances**0.5
    return model.simplemodels.uncorrelated_background(counts.values, background.values, spread)


def objective(params: jax.Array, events: dict[str, jax.Array]) -> jax.Array:
    return infer.expected_cls(likelihood(params, events), hold="parameters").median


def analysis(events: dict[str, jax.Array]) -> judge.Report:
    key = jax.random.key(1)
    trained = train.train(
        objective, jax.numpy.ones(()), events, optimizer=optax.adam(0.1), steps=10, key=key
    )
    assert_type(trained, train.Training)
    fitted = likelihood(trained.params, events)
    asimov = infer.asimov_data(fitted, 0.0)
    fit = infer.best_fit(fitted, asimov, held={"mu": 0.0}).require()
    assert_type(fit, infer.Fit)
    assert_type(fit.certificate.converged, jax.Array)
    assert_type(infer.cls(fitted, asimov, 1.0).observed, jax.Array)
    assert_type(infer.upper_limit(fitted, asimov, confidence=0.9).observed, jax.Array)
    assert_type(infer.profile_scan(fitted, asimov, np.linspace(0, 2, 3)).difference, jax.Array)
    return judge.report("CLs", objective, objective, trained.params, events, key=key)


def mistakes(fitted: model.Model, asimov: jax.Array) -> None:
    infer.best_fit(fitted, asimov, {"mu": 0.0})  # type: ignore[call-arg]
    infer.best_fit(fitted, asimov, poi=0.0)  # type: ignore[call-arg]
    infer.cls(fitted)  # type: ignore[call-arg]
    print(infer.cls(fitted, asimov, 1.0).limit)  # type: ignore[attr-defined]
    infer.upper_limit("workspace.json", asimov)  # type: ignore[arg-type]
    infer.hypotest(fitted, asimov)  # type: ignore[attr-defined]
    relax.kde_counts(asimov, [0.0, 1.0])  # type: ignore[call-arg]
    data.blobs(10)  # type: ignore[call-arg]
    show.figure("wide")  # type: ignore[arg-type]
