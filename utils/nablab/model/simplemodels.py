"""The two models of one channel that ``pyhf.simplemodels`` has, of numbers that may be traced.

Names of samples, parameters and arguments are pyhf's; the parameter of interest is ``mu``.
"""

from nablab.checks import Column
from nablab.model.histfactory import Model, from_spec


def uncorrelated_background(signal: Column, bkg: Column, bkg_uncertainty: Column) -> Model:
    """Signal on a background with an uncertainty of its own in each bin.

    Args:
        signal, bkg: expected events of each bin.
        bkg_uncertainty: standard deviation of the background of each bin, in events: a Poisson
            measurement, ``uncorr_bkguncrt`` in each bin.

    Raises:
        ValueError: as :func:`nablab.model.histfactory.from_spec`.
    """
    per_bin = {"name": "uncorr_bkguncrt", "type": "shapesys", "data": bkg_uncertainty}
    return _signal_and(signal, bkg, per_bin)


def correlated_background(
    signal: Column,
    bkg: Column,
    bkg_up: Column,
    bkg_down: Column,
    *,
    codes: dict[str, str] | None = None,
) -> Model:
    """Signal on a background whose shape follows one parameter in all bins.

    Args:
        signal, bkg: expected events of each bin.
        bkg_up, bkg_down: the background where ``correlated_bkg_uncertainty`` is +1 and -1 standard
            deviation.
        codes: interpolation codes, as :func:`nablab.model.histfactory.from_spec` takes them.

    Raises:
        ValueError: as :func:`nablab.model.histfactory.from_spec`.
    """
    sides = {"hi_data": bkg_up, "lo_data": bkg_down}
    shape = {"name": "correlated_bkg_uncertainty", "type": "histosys", "data": sides}
    return _signal_and(signal, bkg, shape, codes)


def _signal_and(signal, bkg, uncertainty, codes=None) -> Model:
    strength = {"name": "mu", "type": "normfactor", "data": None}
    samples = [
        {"name": "signal", "data": signal, "modifiers": [strength]},
        {"name": "background", "data": bkg, "modifiers": [uncertainty]},
    ]
    channels = [{"name": "single_channel", "samples": samples}]
    return from_spec({"channels": channels}, codes=codes)
