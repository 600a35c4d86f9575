"""The toy of jets and leptons has the spectra that its expectation assumes."""

import awkward
import jax
import numpy as np
import pytest

from nablab.data.objects_toy import JETS, LEPTONS, LOWEST, expected_fractions, jets_and_leptons

EDGES = np.array([25.0, 50.0, 80.0, 120.0, 200.0])


@pytest.mark.parametrize("other", [0.0, 0.3])
def test_events_are_as_expected(other):
    events = 100_000
    toy = jets_and_leptons(events, key=jax.random.key(1), other=other)
    leading_jet = np.asarray(toy.jets.pt[:, 0])
    leading_lepton = np.asarray(awkward.fill_none(awkward.firsts(toy.leptons.pt), 0.0))
    for cut in (LOWEST["lepton"], 35.0):
        counts = np.histogram(leading_jet[leading_lepton > cut], EDGES)[0]
        expected = events * np.asarray(expected_fractions(EDGES, cut, other=other))
        np.testing.assert_array_less(np.abs(counts - expected), 4 * np.sqrt(expected))
    everything = expected_fractions(np.array([0.0, 1e5]), LOWEST["lepton"], other=other)[0]
    np.testing.assert_allclose(everything, 1 - LEPTONS[0], rtol=1e-12)


def test_objects_are_jagged_and_ordered():
    toy = jets_and_leptons(20_000, key=jax.random.key(2), other=0.1)
    for objects, probabilities, first in ((toy.jets, JETS, 1), (toy.leptons, LEPTONS, 0)):
        numbers = np.asarray(awkward.num(objects.pt))
        shares = np.bincount(numbers - first) / len(numbers)
        np.testing.assert_allclose(shares, probabilities, atol=0.015)
        assert awkward.all(objects.pt[:, 1:] <= objects.pt[:, :-1])
    b, btag = awkward.flatten(toy.jets.b), awkward.flatten(toy.jets.btag)
    assert awkward.mean(btag[b]) > 0.7 > 0.3 > awkward.mean(btag[~b])
    assert abs(awkward.mean(b) - 0.3) < 0.01


def test_keys_and_bad_input():
    first, again, third = (jets_and_leptons(10, key=jax.random.key(k)) for k in (0, 0, 1))
    assert first.jets.pt.to_list() == again.jets.pt.to_list() != third.jets.pt.to_list()
    with pytest.raises(ValueError, match="events is 0"):
        jets_and_leptons(0, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"^1 - other is -0.5"):
        jets_and_leptons(5, key=jax.random.key(0), other=1.5)
