"""The training loop: what it learns, keeps, draws, compiles and refuses."""

import gc
import resource
import weakref
from pathlib import Path

import interruption
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import histosys

from nablab.model.histfactory import from_spec
from nablab.train import loop, objectives, stepping
from nablab.train.loop import train
from nablab.train.stepping import draw

KEY = jax.random.key(5)
SGD = optax.sgd(0.25)
EVENTS = {"data": jnp.array([1.0, 2.0, 6.0])}  # mean 3
VALIDATION = {"data": jnp.array([0.5, 1.5])}  # mean 1


def distance(params, events):
    """Lowest where the parameters are the mean of the events."""
    return jnp.mean((params - events["data"]) ** 2)


def run(objective=distance, params=0.0, events=EVENTS, validation=None, **settings):
    defaults = {"optimizer": SGD, "steps": 20, "key": KEY, "progress": False}
    start = jnp.asarray(params, dtype=float)
    return train(objective, start, events, validation, **(defaults | settings))


def trees_equal(first, second):
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


def test_convex_problem_is_solved():
    training = run(steps=60)
    assert float(training.params) == pytest.approx(3.0, rel=1e-12)
    # Each step with rate 1/4 halves the distance to the mean.
    distances = 3.0 * 0.5 ** np.arange(60)
    variance = np.var([1.0, 2.0, 6.0])
    np.testing.assert_allclose(training.losses, variance + distances**2, rtol=1e-12)
    assert training.stopped == "all steps done"
    assert training.best_step == 60
    assert training.snapshots == training.validation_losses == training.validation_steps == []
    assert training.last_params is training.params


def test_tree_of_parameters_and_state_of_the_optimizer():
    def misfit(params, events):
        line = params["slope"] * events["line"]["x"] + params["offset"]
        return jnp.mean((line - events["line"]["y"]) ** 2)

    x = jnp.linspace(-1.0, 2.0, 30)
    events = {"line": {"x": x, "y": 3.0 * x - 2.0}}
    start = {"slope": jnp.zeros(()), "offset": jnp.zeros(())}
    training = train(
        misfit, start, events, optimizer=optax.adam(0.1), steps=600, key=KEY, progress=False
    )
    assert float(training.params["slope"]) == pytest.approx(3.0, abs=1e-4)
    assert float(training.params["offset"]) == pytest.approx(-2.0, abs=1e-4)
    assert start["slope"] == 0.0


def test_history_and_snapshots():
    training = run(validation=VALIDATION, steps=25, check_every=10, snapshot_every=5)
    assert len(training.losses) == 25
    assert training.validation_steps == [10, 20, 25]
    assert [step for step, _ in training.snapshots] == [0, 5, 10, 15, 20, 25]
    values = [3.0 * (1 - 0.5**step) for step, _ in training.snapshots]
    np.testing.assert_allclose([params for _, params in training.snapshots], values, rtol=1e-12)
    looks = [0.25 + (3.0 * (1 - 0.5**step) - 1.0) ** 2 for step in (10, 20, 25)]
    np.testing.assert_allclose(training.validation_losses, looks, rtol=1e-12)
    assert training.best_step == 10


def test_early_stopping_returns_the_best():
    """On the way from 0 to 3 the parameter passes the best of the validation sample, 1."""
    slow = optax.sgd(0.05)
    settings = {"optimizer": slow, "steps": 40, "check_every": 1, "snapshot_every": 1}
    training = run(validation=VALIDATION, patience=4, **settings)
    best = 1 + int(np.argmin(training.validation_losses))
    assert 1 < best < 30
    assert training.best_step == best
    assert training.validation_steps == list(range(1, best + 5))
    assert len(training.losses) == best + 4
    assert float(training.params) == float(dict(training.snapshots)[best])
    assert float(training.params) == pytest.approx(1.0, abs=0.15)
    assert float(training.last_params) == float(dict(training.snapshots)[best + 4])
    assert training.stopped == "no improvement in 4 looks at the validation sample"
    # Without patience all steps are done, and the best is still returned.
    patient = run(validation=VALIDATION, **settings)
    assert len(patient.losses) == 40
    assert float(patient.params) == float(training.params)
    assert patient.stopped == "all steps done"


def interrupt(monkeypatch, call):
    """Ctrl-C in the middle of the given step; each call makes one step."""
    interruption.at_call(monkeypatch, loop, "_followed", call)
    monkeypatch.setattr(loop, "_more_or_fewer", lambda steps, seconds: 1)


@pytest.mark.parametrize("validation", [None, VALIDATION])
@pytest.mark.parametrize("call", [1, 7])
def test_interruption_keeps_what_was_done(validation, call, monkeypatch):
    whole = run(steps=6, snapshot_every=2)
    interrupt(monkeypatch, call)
    training = run(validation=validation, snapshot_every=2)
    assert training.stopped == "interrupted"
    assert training.losses == whole.losses[: call - 1]
    assert [step for step, _ in training.snapshots] == list(range(0, call, 2))
    # No look at the validation sample yet (the first is at step 10): the last is all there is.
    expected = whole.params if call == 7 else 0.0
    assert float(training.params) == float(training.last_params) == float(expected)
    assert training.best_step == call - 1


def test_interruption_after_a_look_keeps_the_best(monkeypatch):
    interrupt(monkeypatch, 13)
    training = run(validation=VALIDATION, check_every=1, optimizer=optax.sgd(0.05))
    assert len(training.losses) == len(training.validation_losses) == 12
    assert float(training.params) != float(training.last_params)
    assert training.best_step == 1 + int(np.argmin(training.validation_losses))


def test_value_that_is_not_finite_stops_with_a_warning():
    def ends_at_two(params, events):
        return distance(params, events) + jnp.where(params > 2.0, jnp.nan, 0.0)

    with pytest.warns(UserWarning, match="objective's value, nan, is not finite at step 3"):
        training = run(ends_at_two)  # at 0, 1.5, 2.25
    assert training.stopped == "the objective's value, nan, is not finite at step 3"
    assert len(training.losses) == 2
    assert np.all(np.isfinite(training.losses))
    assert float(training.params) == float(training.last_params) == 2.25


def test_gradient_that_is_not_finite_stops_with_a_warning():
    """The value is fine, the derivative of the square root is not: parameters stay finite."""

    def kink(params, events):
        return distance(params, events) + jnp.sqrt(jnp.maximum(2.0 - params, 0.0))

    assert np.isfinite(kink(2.5, EVENTS))
    with pytest.warns(UserWarning, match="objective's gradient is not finite at step 1"):
        training = run(kink, params=2.0)
    assert float(training.params) == float(training.last_params) == 2.0
    assert training.losses == []


def test_validation_value_that_is_not_finite_stops_with_a_warning():
    def only_two(params, events):
        beyond = (events["data"].shape[0] == 2) & (params > 2.5)
        return distance(params, events) + jnp.where(beyond, jnp.inf, 0.0)

    with pytest.warns(UserWarning, match="validation objective is inf at step 3"):
        training = run(only_two, validation=VALIDATION, check_every=1)
    assert training.validation_steps == [1, 2]
    assert training.best_step == 1
    assert float(training.params) == 1.5


def test_keys_decide_the_batches():
    events = {"data": jax.random.normal(KEY, (50,))}
    first, again = (run(events=events, batch_size=5) for _ in range(2))
    assert first.losses == again.losses
    assert trees_equal(first.params, again.params)
    other = run(events=events, batch_size=5, key=jax.random.key(6))
    assert not set(first.losses) & set(other.losses)
    assert len(set(first.losses)) == 20
    whole, same = run(events=events), run(events=events, key=jax.random.key(6))
    assert whole.losses == same.losses


def test_each_step_has_its_own_batch():
    """With parameters that do not move, the loss shows the batch."""

    def batch_mean(params, events):
        return jnp.mean(events["data"]) + 0.0 * params

    events = {"data": jnp.arange(1000.0)}
    losses = np.array(run(batch_mean, events=events, batch_size=4, steps=200).losses)
    assert len(set(losses)) > 180
    # Mean and spread of a mean of 4 out of 0 ... 999.
    spread = np.std(np.arange(1000)) / 2
    assert abs(losses.mean() - 499.5) < 4 * spread / np.sqrt(200)
    assert losses.std() == pytest.approx(spread, rel=0.2)


def test_draws_are_independent_between_samples_and_common_within_one():
    rows = jnp.arange(5000)
    events = {"signal": {"x": rows, "weight": 2 * rows}, "background": rows, "other": rows}
    drawn = draw(events, key=KEY)
    np.testing.assert_array_equal(drawn["signal"]["weight"], 2 * drawn["signal"]["x"])
    samples = [drawn["signal"]["x"], drawn["background"], drawn["other"]]
    for sample in samples:
        assert sample.shape == (5000,)
        assert sample.min() < 10
        assert sample.max() >= 4990
        # With replacement: a bootstrap sample has 63 % of the events.
        assert len(np.unique(sample)) / 5000 == pytest.approx(1 - np.exp(-1), abs=0.03)
    correlations = np.corrcoef(samples)[np.triu_indices(3, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(5000)


def test_draws_have_the_size_asked_for_and_do_not_depend_on_the_order():
    events = {"a": jnp.arange(10), "b": jnp.zeros((7, 2))}
    drawn = draw(events, key=KEY, size=25)
    assert drawn["a"].shape == (25,)
    assert drawn["b"].shape == (25, 2)
    assert trees_equal(drawn, draw(dict(reversed(events.items())), key=KEY, size=25))
    assert not np.array_equal(drawn["a"], draw(events, key=jax.random.key(6), size=25)["a"])
    own = draw(events, key=KEY)
    assert (own["a"].shape, own["b"].shape) == ((10,), (7, 2))


def test_trainings_with_the_same_objective_compile_once():
    traces = []

    def counted(params, events):
        traces.append(events["data"].shape)
        return distance(params, events)

    for seed, start in enumerate([0.0, 5.0, -2.0]):
        settings = {"batch_size": 2, "key": jax.random.key(seed), "optimizer": ADAM}
        run(counted, start, validation=VALIDATION, **settings)
    assert sorted(traces) == [(2,), (2,)]  # the step and the look at the validation sample


ADAM = optax.adam(0.1)


def test_progress_bar_is_shown_on_request_only(capsys):
    run(steps=3)
    assert capsys.readouterr() == ("", "")
    run(steps=3, progress=True)
    assert "0/3" in "".join(capsys.readouterr())


@pytest.mark.parametrize("bad", [0, -1])
@pytest.mark.parametrize(
    "name", ["steps", "batch_size", "check_every", "patience", "snapshot_every"]
)
def test_numbers_below_one_are_named(name, bad):
    with pytest.raises(ValueError, match=f"^{name} is {bad}: it must be at least 1$"):
        run(validation=VALIDATION, **{name: bad})


@pytest.mark.parametrize("name", ["events", "validation"])
@pytest.mark.parametrize(
    "sample", [jnp.zeros(0), (jnp.zeros(3), jnp.zeros(4)), jnp.array(2.0), None]
)
def test_unusable_samples_are_named(name, sample):
    samples = {"validation": VALIDATION, name: {"fine": jnp.zeros(3), "signal": sample}}
    with pytest.raises(ValueError, match=rf"^{name}\['signal'\] must have arrays of one length"):
        run(**samples)


def test_patience_needs_a_validation_sample():
    with pytest.raises(ValueError, match="patience needs a validation sample"):
        run(patience=3)


def test_seeds_agree_with_single_trainings():
    events = {"data": 3.0 + jax.random.normal(KEY, (50,))}
    starts, keys = [jnp.array(0.0), jnp.array(5.0), jnp.array(2.9)], jax.random.split(KEY, 3)
    settings = {
        "optimizer": ADAM, "steps": 60, "batch_size": 20, "check_every": 4, "patience": 3,
        "snapshot_every": 6, "progress": False,
    }  # fmt: skip
    seeds = loop.train_seeds(distance, starts, events, events, keys=keys, **settings)
    for start, key, seed in zip(starts, keys, seeds, strict=True):
        single = train(distance, start, events, events, key=key, **settings)
        assert seed.stopped == single.stopped
        assert seed.validation_steps == single.validation_steps
        np.testing.assert_allclose(seed.losses, single.losses, rtol=1e-12)
        assert float(seed.params) == pytest.approx(float(single.params), rel=1e-12)
        assert [step for step, _ in seed.snapshots] == [step for step, _ in single.snapshots]
    assert len({len(seed.losses) for seed in seeds}) > 1  # each stops by itself


def test_a_failing_seed_leaves_the_others_alone():
    def ends_at_two(params, events):
        return distance(params, events) + jnp.where(params > 2.0, jnp.nan, 0.0)

    with pytest.warns(UserWarning, match="objective's value, nan, is not finite at step 3"):
        failed, fine = loop.train_seeds(
            ends_at_two, [jnp.array(0.0), jnp.array(-1e3)], EVENTS,
            keys=jax.random.split(KEY, 2), optimizer=SGD, steps=5, progress=False,
        )  # fmt: skip
    assert (len(failed.losses), len(fine.losses)) == (2, 5)
    assert float(failed.params) == 2.25
    assert fine.stopped == "all steps done"


def test_every_seed_needs_a_key():
    with pytest.raises(ValueError, match=r"keys must be one for each of 2 params, got \(3,\)"):
        loop.train_seeds(
            distance, [jnp.zeros(())] * 2, EVENTS, keys=jax.random.split(KEY, 3),
            optimizer=SGD, steps=1,
        )  # fmt: skip


def test_groups_with_their_own_rates_a_limit_and_a_frozen_one():
    def misfit(params, events):
        return sum(jnp.sum((p - 1.0) ** 2) for p in jax.tree.leaves(params))

    names = ("fast", "slow", "limited", "frozen")
    optimizer = optax.partition(
        {
            "fast": optax.sgd(0.25),
            "slow": optax.sgd(0.05),
            "limited": optax.chain(optax.sgd(0.25), loop.clamped(-0.1, 0.6)),
            "frozen": optax.set_to_zero(),
        },
        {name: name for name in names},
    )
    start = {name: {"weights": jnp.zeros(2)} for name in names}
    training = train(
        misfit, start, EVENTS, optimizer=optimizer, steps=4, key=KEY, snapshot_every=1,
        progress=False,
    )  # fmt: skip
    values = {name: float(tree["weights"][0]) for name, tree in training.params.items()}
    # Rate r multiplies the distance to 1 by 1 - 2 r at each step.
    assert values["fast"] == pytest.approx(1 - 0.5**4, rel=1e-12)
    assert values["slow"] == pytest.approx(1 - 0.9**4, rel=1e-12)
    assert (values["limited"], values["frozen"]) == (0.6, 0.0)
    assert float(training.snapshots[1][1]["limited"]["weights"][0]) == 0.5


def test_a_limited_parameter_comes_back():
    limited = optax.chain(optax.sgd(0.25), loop.clamped(0.0, 0.5))
    state, params = limited.init(jnp.array(0.4)), jnp.array(0.4)
    for gradient, expected in [(-4.0, 0.5), (-4.0, 0.5), (1.0, 0.25), (4.0, 0.0)]:
        updates, state = limited.update(jnp.array(gradient), state, params)
        params = optax.apply_updates(params, updates)
        assert float(params) == expected


def test_impossible_limits_are_refused():
    with pytest.raises(ValueError, match=r"low must not be above high: low=0\.2, high=0\.1"):
        loop.clamped(0.2, 0.1)


def test_many_steps_run_in_one_call(monkeypatch):
    calls, advance = [], stepping.advance

    def counted(*arguments, **settings):
        calls.append(arguments[-1])
        return advance(*arguments, **settings)

    monkeypatch.setattr(stepping, "advance", counted)
    training = run(steps=1000)
    assert len(training.losses) == 1000
    assert len(calls) < 20
    calls.clear()
    run(steps=40, validation=VALIDATION, check_every=15, snapshot_every=10)
    assert {10, 15, 20, 30, 40} <= set(calls)


def forgets(train_one, count=3):
    """How many of the things that some trainings were made of are still there."""
    references = [weakref.ref(train_one(n)) for n in range(count)]
    gc.collect()
    return sum(reference() is not None for reference in references)


def test_objectives_are_not_kept():
    def with_a_new_lambda(n):
        objective = lambda params, events: distance(params, events) + n  # noqa: E731
        run(objective, validation=VALIDATION)
        return objective

    assert forgets(with_a_new_lambda) == 0


def test_objectives_behind_a_fit_are_not_kept():
    """Fits have derivative rules of their own, which JAX stores."""

    def with_a_likelihood(n):
        def objective(params, events):
            bins = jnp.mean(events["data"]) * jnp.array([1.0, 2.0 + params])
            model = from_spec(histosys(bins, 50 + 0 * bins, 45 + bins, 55 - bins))
            return objectives.log_cls(model) + n

        run(objective, steps=2, validation=VALIDATION)
        return objective

    assert forgets(with_a_likelihood, 1) == 0


class Analysis:
    """Its method is another object each time it is looked up."""

    def __init__(self):
        self.traces = 0

    def objective(self, params, events):
        self.traces += 1
        return distance(params, events)


def test_methods_are_compiled_once_and_not_kept():
    def with_a_method(_):
        analysis = Analysis()
        for _ in range(2):
            run(analysis.objective)
        assert analysis.traces == 1
        return analysis

    assert forgets(with_a_method) == 0


def test_optimizers_are_not_kept():
    def with_a_new_rate(n):
        optimizer = optax.sgd(0.1 / (1 + n))
        run(optimizer=optimizer)
        return optimizer.update

    assert forgets(with_a_new_rate) == 0


def test_a_callable_that_allows_no_weak_reference():
    class Slotted:
        __slots__ = ()

        def __call__(self, params, events):
            return distance(params, events)

    assert float(run(Slotted(), steps=60).params) == pytest.approx(3.0, rel=1e-12)


def test_what_an_objective_has_captured_is_freed():
    """Six times 40 MB, twice and more (XLA copies constants), would be 0.5 GB at least."""

    def with_own_events(n):
        sample = jnp.arange(5e6) + n
        objective = lambda params, events: distance(params, events) + sample.mean()  # noqa: E731
        run(objective, steps=2)
        return objective

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    forgets(with_own_events, 2)
    before = resident()
    assert forgets(with_own_events, 6) == 0
    assert resident() - before < 250e6


def test_annealed():
    slope = loop.annealed(0.5, 8.0, steps=100)
    np.testing.assert_allclose(
        [slope(i) for i in (0, 25, 50, 100, 1000)], [0.5, 1.0, 2.0, 8.0, 8.0], rtol=1e-6
    )
    assert loop.annealed(8.0, 0.5, steps=4)(100) == pytest.approx(0.5)  # a bandwidth shrinks
    with pytest.raises(ValueError, match=r"last is 0\.0"):
        loop.annealed(0.5, 0.0, steps=100)
