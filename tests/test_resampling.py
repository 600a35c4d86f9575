"""A network that learnt the fluctuations of its events does not survive other events."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from nablab.infer import hypotests
from nablab.judge.dependence import best_mu, observed_cls
from nablab.judge.resampling import SecondSample, second_sample
from nablab.model.histfactory import from_spec

KEY, CELLS, EVENTS = jax.random.key(4), 100, 300
SIGNAL, BACKGROUND = 15.0, 100.0


def simulated(seed):
    """A weak feature between 0 and 1: signal is more often on the right."""
    keys = jax.random.split(jax.random.key(seed))
    signal, background = (jax.random.uniform(key, (EVENTS,)) for key in keys)
    return {"signal": signal**0.8, "background": background}


FIRST, SECOND = simulated(1), simulated(2)


def in_cells(x):
    return jnp.zeros(CELLS).at[jnp.floor(CELLS * x).astype(int)].add(1.0)


def shares(selected, x):
    """Fraction of the events in rejected and selected cells."""
    chosen = jnp.mean(selected[jnp.floor(CELLS * x).astype(int)])
    return jnp.stack([1.0 - chosen, chosen])


def build(selected, events):
    """A histogram of two bins: the cells of the feature that are selected, and the others."""
    signal = SIGNAL * shares(selected, events["signal"])
    background = BACKGROUND * shares(selected, events["background"])
    channel = models.channel("c", s=(signal, [models.MU]), b=(background, []))
    mu = {"name": "mu", "bounds": [[-10.0, 10.0]]}
    return from_spec({"channels": [channel], "parameters": [mu]})


#: A look-up table with a parameter for each cell, as overtrained as can be; and one cut.
OVERTRAINED = 1.0 * (in_cells(FIRST["signal"]) > in_cells(FIRST["background"]))
HONEST = 1.0 * (jnp.arange(CELLS) >= 50)


@pytest.fixture(scope="module")
def overtrained():
    return second_sample(observed_cls, build, OVERTRAINED, FIRST, SECOND, key=KEY)


def test_an_overtrained_network_does_not_survive(overtrained):
    assert overtrained.values[0] < 0.6 * overtrained.values[2]
    assert not overtrained.survives
    assert not overtrained.unbiased
    assert overtrained.failed == 0


def test_an_honest_cut_survives():
    found = second_sample(observed_cls, build, HONEST, FIRST, SECOND, key=KEY)
    assert found.survives and found.unbiased
    assert "On the second sample the value of the first survives" in str(found)
    assert "best-fit mu is unbiased within the fluctuations." in str(found)


def test_values_are_those_of_the_two_models(overtrained):
    own, other = build(OVERTRAINED, FIRST), build(OVERTRAINED, SECOND)
    data = [model.expected_data(model.parameters(0.0)) for model in (own, other)]
    pairs = (own, data[0]), (own, data[1]), (other, data[1])
    values = [hypotests.cls(*pair).observed for pair in pairs]
    np.testing.assert_allclose(overtrained.values, values, rtol=1e-6)
    signal = best_mu(own, other.expected_data(other.parameters(1.0)))
    assert overtrained.fitted_mu == pytest.approx(float(signal), rel=1e-6)


def test_text_and_html(overtrained):
    lines = str(overtrained).split("\n")
    assert lines[0] == "observed cls, data with mu = 0, from two simulated samples"
    low, high = overtrained.intervals[0]
    shown = [f"{x:#.2g}" for x in (overtrained.values[0], low, high)]
    assert lines[2].split() == ["first,", "first", *shown]
    assert lines[5].startswith("  best-fit mu of 1")
    assert "DOES NOT SURVIVE: probably it was a fluctuation" in lines[6] and "BIASED" in lines[7]
    assert "<td>second, second</td>" in overtrained._repr_html_()


@pytest.mark.parametrize(
    ("mu_interval", "shown", "verdict"),
    [
        ([1.00175, 1.047], ["1.022", "1.002", "1.047"], "BIASED"),
        ([0.99, 1.047], ["1.02", "0.990", "1.05"], "unbiased"),
    ],
)
def test_the_verdicts_can_be_seen_in_the_printed_numbers(mu_interval, shown, verdict):
    """With two digits: 1.0 from 1.0 to 1.0, and intervals of CLs that touch at 0.0020."""
    values, intervals = [0.001, 0.002, 0.003], [[0.0009, 0.002012], [0.0, 1.0], [0.002041, 0.004]]
    numbers = np.array(values), np.array(intervals), 1.0218, np.array(mu_interval)
    found = SecondSample("cls", 0.0, *numbers, 200, 0)
    rows = found.table.rows
    assert list(rows[3][1:]) == shown
    assert verdict in str(found)
    assert not found.survives
    assert (rows[0][3], rows[2][2]) == ("0.00201", "0.00204")


def test_values_in_closed_form_and_failures():
    """What is more than the expected background in the selected bin, if it is not too much."""
    p, q = (float(jnp.mean(HONEST[(CELLS * e["signal"]).astype(int)])) for e in (FIRST, SECOND))
    b, c = (float(jnp.mean(HONEST[(CELLS * e["background"]).astype(int)])) for e in (FIRST, SECOND))
    expected = [SIGNAL * p, SIGNAL * q + BACKGROUND * (c - b), SIGNAL * q]
    limit = max(expected) + 2.0

    def excess(model, data):
        value = (data[:2] - model.expected_main(model.parameters(0.0)))[1]
        return jnp.where(value > limit, jnp.nan, value)

    found = second_sample(excess, build, HONEST, FIRST, SECOND, key=KEY, mu=1.0, bootstraps=300)
    np.testing.assert_allclose(found.values, expected, rtol=1e-9)
    assert 0 < found.failed < 300
    assert f"{found.failed} of 300 bootstrap samples failed: left out." in str(found)
    assert (found.intervals[:, 1] <= limit).all()


APART = {
    "intervals": np.array([[0.0, 0.1], [0.0, 0.1], [0.2, 0.3]]),
    "mu_interval": np.array([1.1, 1.2]),
}


@pytest.mark.parametrize(
    ("change", "verdict", "first"),
    [
        ({"failed": 5}, True, "5 of 200 bootstrap samples failed"),
        (APART | {"failed": 4}, False, "4 of 200 bootstrap samples failed"),
        (APART | {"failed": 5}, None, "5 of 200 bootstrap samples failed"),
        ({"failed": 100}, None, "100 of 200 bootstrap samples failed"),
        ({"values": np.array([0.1, np.nan, 0.1])}, None, "cls, first, second: nan"),
        ({"fitted_mu": np.nan}, None, "cls, best-fit mu: nan"),
        ({"failed": 200, "intervals": np.full((3, 2), np.nan)}, None, "200 of 200 bootstrap"),
    ],
)
def test_no_verdict_from_what_failed(change, verdict, first):
    """It used to be "DOES NOT SURVIVE" and "BIASED" where every fit had failed."""
    intervals = np.array([[0.0, 0.2]] * 3)
    good = SecondSample("cls", 0.0, np.full(3, 0.1), intervals, 1.0, np.array([0.9, 1.1]), 200, 0)
    assert (good.survives, good.unbiased, good.require()) == (True, True, good)
    found = replace(good, **change)
    assert (found.survives, found.unbiased) == (verdict, verdict)
    assert (str(found).count("cannot be judged") == 2) == (verdict is None)
    assert ("SURVIVE" in str(found) and "BIASED" in str(found)) == (verdict is False)
    with pytest.raises(RuntimeError, match=first):
        found.require()


@pytest.mark.parametrize("done", [19, 20])
def test_an_interruption_keeps_what_is_done(done):
    calls = itertools.count(1)

    def excess(model, data):
        if next(calls) == 3 * (done + 1) + 1:  # three numbers for each, and the nominal ones
            raise KeyboardInterrupt
        return data[1]

    arguments = build, HONEST, FIRST, SECOND
    if done < 20:
        with pytest.raises(KeyboardInterrupt):
            second_sample(excess, *arguments, key=KEY)
        return
    with pytest.warns(UserWarning, match="interrupted: 20 of 200 bootstrap samples are done"):
        found = second_sample(excess, *arguments, key=KEY)
    assert (found.bootstraps, found.failed) == (20, 0)


def test_widths_of_the_intervals():
    def signal_in_data(model, data):
        return data[1]

    found = second_sample(
        signal_in_data, build, HONEST, FIRST, SECOND, key=KEY, mu=0.0, bootstraps=600
    )
    b = [float(jnp.mean(HONEST[(CELLS * e["background"]).astype(int)])) for e in (FIRST, SECOND)]
    sigma = [BACKGROUND * np.sqrt(x * (1 - x) / EVENTS) for x in (b[0], b[1], b[1])]
    widths = found.intervals[:, 1] - found.intervals[:, 0]
    np.testing.assert_allclose(widths, 2 * 1.96 * np.array(sigma), rtol=0.15)
    np.testing.assert_allclose(found.values, [BACKGROUND * x for x in (b[0], b[1], b[1])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bootstraps": 1}, "bootstraps is 1"),
        ({"mu": np.inf}, "mu is inf"),
        ({"number": lambda model, data: data}, r"number has shape \(2,\): it must be a scalar"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"number": best_mu, "bootstraps": 3, **change}
    with pytest.raises(ValueError, match=message):
        second_sample(build=build, params=HONEST, first=FIRST, second=SECOND, key=KEY, **arguments)


def test_bad_models_are_named():
    def with_other_bins(params, events):
        if events is FIRST:
            return build(params, events)
        return from_spec(models.shapesys([5.0], [50.0], [5.0]))

    with pytest.raises(ValueError, match="the model of second has another structure"):
        second_sample(best_mu, with_other_bins, HONEST, FIRST, SECOND, key=KEY)
