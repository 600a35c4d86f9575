"""The report quotes the hard number, with the interval that statistics demands."""

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest

from nablab.judge import dependence, expectations
from nablab.judge.calibration import coverage
from nablab.judge.reports import Report, report
from nablab.judge.resampling import second_sample
from nablab.model.histfactory import from_spec

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
    return report("fraction", soft, hard, PARAMS, held_out, key=key, **settings)


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


def counting_model(params, events):
    """Hard histograms of two bins, with an uncertainty of each background bin."""

    def counts(sample, expected):
        above = jnp.mean(events[sample] > params["threshold"], dtype=float)
        return expected * jnp.stack([1.0 - above, above])

    background = counts("background", 60.0)
    return from_spec(models.shapesys(counts("signal", 30.0), background, 0.1 * background))


@pytest.fixture(scope="module")
def with_tables():
    trained_on = {name: sample[::2] + 1.0 for name, sample in HELD_OUT.items()}
    return make(hard_fraction, bootstraps=20, model=counting_model, trained_on=trained_on)


def test_tables_are_those_of_the_model_of_the_held_out_events(with_tables):
    model = counting_model(PARAMS, HELD_OUT)
    interval, positive, cls, mu, constraints, own, second, crossed = with_tables.tables
    assert interval == expectations.expected_interval(model).table
    assert positive == expectations.positivity(model).table
    assert cls == dependence.robustness(model, dependence.observed_cls).table
    assert mu == dependence.robustness(model, dependence.best_mu, mu=1.0).table
    assert constraints == dependence.constraints(model).table
    assert own.title == "coverage of mu = 1 in 1000 toys" and own.rows[0][2] == "right"
    assert second.title.endswith("first: the events of the training, second: held-out events")
    assert crossed.title.startswith("coverage of mu = 1 in 1000 toys; templates from the events of")


def test_templates_of_the_training_are_tried_on_held_out_events(with_tables):
    """The training has seen events that are shifted by 1: wrong templates."""
    trained_on = {name: sample[::2] + 1.0 for name, sample in HELD_OUT.items()}
    numbers = dependence.observed_cls, counting_model, PARAMS
    second = second_sample(*numbers, trained_on, HELD_OUT, key=KEY, bootstraps=20)
    rows = with_tables.tables[6].rows
    assert [row[1] for row in rows] == [row[1] for row in second.table.rows]
    wrong, truth = (counting_model(PARAMS, events) for events in (trained_on, HELD_OUT))
    expected = coverage(wrong, truth, key=KEY)
    assert expected.verdicts[0] == "too low"
    shown = float(with_tables.tables[7].rows[0][1].split()[0])
    assert shown == pytest.approx(100 * expected.fractions[0], abs=6)  # other toys


def test_tables_are_shown_after_the_quoted_number(with_tables):
    """Which does not depend on them."""
    without = make(hard_fraction, bootstraps=20)
    assert without.tables == ()
    parts = str(with_tables).split("\n\n")
    assert parts[0] == str(without)
    assert parts[1:] == [str(table) for table in with_tables.tables]
    html = with_tables._repr_html_()
    assert html.startswith(without._repr_html_())
    assert html.count("<table>") == 9
    assert html.endswith(with_tables.tables[-1]._repr_html_())


def test_tables_without_events_of_the_training():
    result = make(hard_fraction, bootstraps=20, model=counting_model)
    assert len(result.tables) == 6


def test_events_of_the_training_need_a_model():
    with pytest.raises(ValueError, match="trained_on needs a model"):
        make(hard_fraction, trained_on=HELD_OUT)
