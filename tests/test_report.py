"""The report quotes the hard number, with the interval that statistics demands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nablab.train.report import Report, report

KEY = jax.random.key(8)
PARAMS = {"threshold": jnp.array(0.5)}
EVENTS = 400
HELD_OUT = {
    "signal": 1.0 + jax.random.normal(jax.random.key(1), (EVENTS,)),
    "background": 2.0 * jax.random.normal(jax.random.key(2), (900,)),
}


def soft_fraction(params, events):
    return jax.nn.sigmoid(events["signal"] - params["threshold"]).mean()


def hard_fraction(params, events):
    return jnp.mean(events["signal"] > params["threshold"], dtype=float)


def signal_mean(params, events):
    return events["signal"].mean()


def difference(params, events):
    return events["signal"].mean() - events["background"].mean()


def make(hard, soft=soft_fraction, held_out=HELD_OUT, key=KEY, **settings):
    return report("fraction", soft, hard, PARAMS, held_out, key, **settings)


def half_width(result):
    return (result.high - result.low) / 2


def test_soft_and_hard_value():
    result = make(hard_fraction)
    signal = np.asarray(HELD_OUT["signal"])
    assert result.hard == pytest.approx((signal > 0.5).mean(), rel=1e-12)
    assert result.soft == pytest.approx((1 / (1 + np.exp(0.5 - signal))).mean(), rel=1e-12)
    assert abs(result.hard - result.soft) > 0.05
    assert result.events == {"signal": EVENTS, "background": 900}
    assert result.name == "fraction"
    assert all(type(x) is float for x in (result.soft, result.hard, result.low, result.high))


def test_interval_of_a_mean():
    """68 % of a Gaussian: 0.994 standard errors on each side."""
    signal = np.asarray(HELD_OUT["signal"])
    result = make(signal_mean, bootstraps=600)
    assert half_width(result) == pytest.approx(0.994 * signal.std() / np.sqrt(EVENTS), rel=0.2)
    assert result.low < result.hard < result.high
    centre = (result.low + result.high) / 2
    assert centre == pytest.approx(signal.mean(), abs=0.3 * half_width(result))


def test_samples_fluctuate_independently():
    result = make(difference, bootstraps=600)
    errors = [np.std(sample) / np.sqrt(len(sample)) for sample in HELD_OUT.values()]
    assert half_width(result) == pytest.approx(0.994 * np.hypot(*errors), rel=0.2)
    # The same rows drawn for both would give a difference without any spread.
    twins = {"signal": HELD_OUT["signal"], "background": HELD_OUT["signal"]}
    assert half_width(make(difference, held_out=twins)) > half_width(make(signal_mean))


def test_interval_covers():
    """Of 50 experiments about 68 % have the truth in their interval."""
    covered = 0
    for seed in range(50):
        held_out = {"signal": 3.0 + jax.random.normal(jax.random.key(100 + seed), (100,))}
        result = make(signal_mean, held_out=held_out, soft=signal_mean, key=jax.random.key(seed))
        covered += result.low < 3.0 < result.high
    assert 24 <= covered <= 43  # 34 expected, standard deviation 3.3


def test_keys_decide_the_interval_only():
    first, again, other = (make(signal_mean, key=jax.random.key(seed)) for seed in (1, 1, 2))
    assert first == again
    assert (first.hard, first.soft) == (other.hard, other.soft)
    assert first.low != other.low


def test_number_of_bootstraps():
    sizes = []

    def spy(params, events):
        jax.debug.callback(lambda x: sizes.append(len(x)), events["signal"])
        return events["signal"].mean()

    make(spy, bootstraps=17)
    jax.effects_barrier()
    assert sizes == [EVENTS] * 18  # the sample itself, and 17 as large


def test_text_and_table_contain_the_numbers():
    result = make(hard_fraction)
    numbers = [f"{x:.2g}" for x in (result.hard, result.low, result.high, result.soft)]
    assert len(set(numbers)) == 4
    hard, low, high, soft = numbers
    sizes = "400 signal, 900 background"
    assert str(result) == f"fraction: hard {hard} (68 %: {low} to {high}), soft {soft}; {sizes}"
    table = result._repr_html_()
    assert f"<td>hard, to be quoted</td><td>{hard}</td>" in table
    assert f"<td>68 % interval</td><td>{low} to {high}</td>" in table
    assert f"<td>soft, as trained</td><td>{soft}</td>" in table
    assert f"<td>{sizes}</td>" in table
    assert "<caption>fraction</caption>" in table


def test_name_is_text_in_the_table():
    result = Report("CLs <b", 0.1, 0.2, 0.15, 0.25, {"signal": 3})
    assert "<caption>CLs &lt;b</caption>" in result._repr_html_()
    assert str(result).startswith("CLs <b: hard")


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_hard_value_that_is_not_finite_is_refused(bad):
    with pytest.raises(ValueError, match=f"fraction is {bad} with the hard analysis"):
        make(lambda params, events: bad * jnp.abs(events["signal"]).mean())


def test_bootstrap_value_that_is_not_finite_is_refused():
    """One event in the bin: a third of the bootstrap samples leave the bin empty."""
    held_out = {"signal": jnp.array([1.0, -1.0, -2.0, -3.0])}

    def log_yield(params, events):
        return jnp.log(jnp.sum(events["signal"] > 0.0))

    with pytest.raises(ValueError, match=r"not finite .* on \d+ of 200 bootstrap samples"):
        make(log_yield, held_out=held_out)
