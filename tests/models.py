"""Specifications that several tests share."""

import numpy as np

MU = {"name": "mu", "type": "normfactor", "data": None}


def channel(name, **samples):
    """A channel; each sample is (yields, list of modifiers)."""
    return {
        "name": name,
        "samples": [
            {"name": sample, "data": yields, "modifiers": modifiers}
            for sample, (yields, modifiers) in samples.items()
        ],
    }


def modifier(kind, name, data=None):
    """One modifier."""
    return {"name": name, "type": kind, "data": data}


def shapesys(signal, background, uncertainty):
    """Per-bin uncorrelated background uncertainty."""
    uncorrelated = modifier("shapesys", "uncorrelated", uncertainty)
    return {
        "channels": [channel("c", signal=(signal, [MU]), background=(background, [uncorrelated]))]
    }


def histosys(signal, background, down, up):
    """One correlated background shape."""
    shape = modifier("histosys", "shape", {"lo_data": down, "hi_data": up})
    return {"channels": [channel("c", signal=(signal, [MU]), background=(background, [shape]))]}


def everything():
    """Two channels, three samples, all supported modifiers, shared parameters."""
    energy = modifier(
        "histosys", "energy", {"lo_data": [28.0, 41.0, 21.0], "hi_data": [33.0, 38.0, 18.5]}
    )
    energy_signal = modifier(
        "histosys", "energy", {"lo_data": [3.8, 7.5, 5.2], "hi_data": [4.1, 8.8, 4.7]}
    )
    rate = modifier("normsys", "rate", {"lo": 0.92, "hi": 1.1})
    shared_rate = modifier("normsys", "energy", {"lo": 0.95, "hi": 1.08})
    return {
        "channels": [
            channel(
                "signal_region",
                signal=([4.0, 8.0, 5.0], [MU, energy_signal, modifier("lumi", "lumi")]),
                top=(
                    [30.0, 40.0, 20.0],
                    [energy, rate, modifier("staterror", "mc", [2.0, 3.0, 0.0])],
                ),
                other=([5.0, 0.0, 6.0], [modifier("staterror", "mc", [1.0, 0.0, 0.0])]),
            ),
            channel(
                "control_region",
                top=([110.0, 90.0], [shared_rate, modifier("shapesys", "fakes", [7.0, 0.0])]),
                other=([20.0, 25.0], [modifier("shapefactor", "free")]),
            ),
        ],
        "parameters": [
            {
                "name": "lumi",
                "auxdata": [1.0],
                "sigmas": [0.02],
                "bounds": [[0.5, 1.5]],
                "inits": [1.0],
            }
        ],
    }


def with_arrays(spec, transform=np.asarray):
    """The same specification with every list of yields passed through ``transform``."""
    if isinstance(spec, dict):
        return {
            name: transform(entry)
            if name in ("data", "lo_data", "hi_data") and isinstance(entry, list)
            else with_arrays(entry, transform)
            for name, entry in spec.items()
        }
    return [with_arrays(entry, transform) for entry in spec] if isinstance(spec, list) else spec
