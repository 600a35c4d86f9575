"""Likelihoods that others published, and the results known for them: numbers, in our own form.

``VALIDATION`` are the nine workspaces of pyhf's validation (tests/test_validation.py of
github.com/scikit-hep/pyhf, Apache-2.0), with the CLs and p0 published there. ``LEPTONS`` is a
likelihood of ATLAS: displaced leptons, arXiv:2011.07812, HEPData ins1831504, here as in
examples/SRee_SRmm_Srem_v2.json of github.com/malin-horstmann/bayesian_pyhf (MIT). ``make data``
fetches the larger ones, of which ``REFERENCES`` has the results.
"""

import os
from pathlib import Path
from typing import NamedTuple

from models import MU, channel, modifier

#: Where the files of ``make data`` are, or None. The conftest.py above sets the variable.
DATA = Path(folder) if (folder := os.environ.get("NABLAB_DATA")) else None


def workspace(channels, observed, parameters=(), poi="mu"):
    """A pyhf workspace with one measurement."""
    config = {"poi": poi, "parameters": list(parameters)}
    return {
        "channels": channels,
        "observations": [
            {"name": one["name"], "data": data}
            for one, data in zip(channels, observed, strict=True)
        ],
        "measurements": [{"name": "meas", "config": config}],
        "version": "1.0.0",
    }


def single(signal, background, observed, *modifiers):
    """A workspace of one channel with one background."""
    samples = {"signal": (signal, [MU]), "background": (background, list(modifiers))}
    return workspace([channel("singlechannel", **samples)], [observed])


def with_control(signal_region, control, observed):
    """A workspace of a signal region and a control region."""
    return workspace([channel("signal", **signal_region), channel("control", **control)], observed)


def norm(name, low, high):
    return modifier("normsys", name, {"lo": low, "hi": high})


def shape(low, high, name="coupled_histosys"):
    return modifier("histosys", name, {"lo_data": low, "hi_data": high})


def uncorrelated(data, name="uncorr_bkguncrt"):
    return modifier("shapesys", name, data)


LUMI = modifier("lumi", "lumi")
COUPLED_SHAPE = modifier("shapefactor", "coupled_shapefactor")

VALIDATION = {
    "1bin_lumi": workspace(
        [
            channel(
                "channel1",
                signal=([20.0], [MU]),
                background1=([100.0], [LUMI]),
                background2=([0.0], [LUMI]),
            )
        ],
        [[55.0]],
        [
            {
                "name": "lumi",
                "auxdata": [1.0],
                "sigmas": [0.1],
                "bounds": [[0.0, 10.0]],
                "inits": [1.0],
            }
        ],
    ),
    "1bin_normsys": single(
        [30.0, 95.0], [100.0, 150.0], [120.0, 180.0], norm("bkg_norm", 0.9, 1.1)
    ),
    "1bin_shapesys": single([10.0], [50.0], [55.0], uncorrelated([7.0])),
    "1bin_shapesys_q0": single([25.0], [50.0], [80.0], uncorrelated([7.0])),
    "2bin_histosys": single(
        [30.0, 95.0], [100.0, 150.0], [120.0, 180.0], shape([98, 100], [102, 190], "bkg_norm")
    ),
    "2bin_2channel": with_control(
        {
            "signal": ([10.0, 35.0], [MU]),
            "background": (
                [100.0, 150.0],
                [uncorrelated([10.0, 10.0], "uncorr_bkguncrt_signal")],
            ),
        },
        {"background": ([200.0, 350.0], [uncorrelated([5.0, 10.0], "uncorr_bkguncrt_control")])},
        [[110.0, 155.0], [205.0, 345.0]],
    ),
    "2bin_2channel_coupledhistosys": with_control(
        {
            "signal": ([30.0, 35.0], [MU]),
            "bkg1": ([100.0, 100.0], [shape([90.0, 90.0], [110.0, 110.0])]),
            "bkg2": ([50.0, 120.0], [shape([45.0, 45.0], [55.0, 55.0])]),
        },
        {"background": ([105.0, 100.0], [shape([95.0, 90.0], [110.0, 115.0])])},
        [[170.0, 220.0], [110.0, 105.0]],
    ),
    "2bin_2channel_couplednorm": with_control(
        {
            "signal": ([10.0, 35.0], [MU]),
            "bkg1": ([100.0, 100.0], [norm("coupled_normsys", 0.9, 1.1)]),
            "bkg2": ([50.0, 100.0], [norm("coupled_normsys", 0.5, 1.5)]),
        },
        {"background": ([100.0, 100.0], [norm("coupled_normsys", 0.9, 1.1)])},
        [[105.0, 220.0], [110.0, 105.0]],
    ),
    "2bin_2channel_coupledshapefactor": with_control(
        {
            "signal": ([20.0, 20.0], [MU]),
            "bkg1": ([100.0, 70.0], [COUPLED_SHAPE]),
        },
        {"background": ([100.0, 100.0], [COUPLED_SHAPE])},
        [[220.0, 230.0], [200.0, 300.0]],
    ),
}

#: CLs at mu = 1 with the statistic q, and p0 for ``1bin_shapesys_q0``: observed, then expected from
#: -2 to +2 standard deviations.
PUBLISHED = {
    "1bin_shapesys": [
        0.4541889294, 0.06372011644, 0.1509686618, 0.327965743, 0.6046135698, 0.8662652332
    ],
    "1bin_shapesys_q0": [
        0.003936883192, 1.220471471e-05, 0.0006405237426, 0.01320286716, 0.1111960416, 0.4128607973
    ],
    "1bin_lumi": [
        0.0104731444, 0.01060400766, 0.04022451458, 0.1361463258, 0.3707898553, 0.7110468541
    ],
    "1bin_normsys": [
        6.735336291e-4, 7.472581399e-10, 5.741738272e-8, 3.69012095e-6, 1.69668828e-4, 4.3929353e-3
    ],
    "2bin_histosys": [
        0.1001463461, 7.133904244e-06, 0.0001254710063, 0.001880010666, 0.02078964908, 0.1369249452
    ],
    "2bin_2channel": [
        0.05633276944, 0.0004349234604, 0.003422361539, 0.02337454318, 0.121866503, 0.4038227459
    ],
    "2bin_2channel_couplednorm": [
        0.5906216824, 0.05522270454, 0.1361301881, 0.3068687963, 0.583943791, 0.8554708285
    ],
    "2bin_2channel_coupledshapefactor": [
        0.5421679125, 0.01375329993, 0.04888740006, 0.1555529625, 0.4007561343, 0.7357169631
    ],
}  # fmt: skip


def leptons():
    """The likelihood of the displaced leptons: three channels of one bin, 13 parameters."""
    signal = {
        "SigXSec": (0.949, 1.051),
        "cuts_SRmm_LRT": (1.11, 0.89),
        "cuts_SRmm_LRTfilter": (1.015, 0.985),
        "ucsSRmm_Slep_1000_10": (0.978625, 1.02138),
        "ucsSRmm_disp": (0.98279, 1.01721),
        "ucsSRmm_mu_sel": (0.927557, 1.07495),
        "ucsSRmm_mu_trig": (0.980866, 1.01847),
        "ucsSRmm_pileupWeight": (1.01432, 0.995544),
    }
    strength = modifier("normfactor", "mu_Sig")
    modifiers = [LUMI, *(norm(name, *ends) for name, ends in signal.items()), strength]
    electrons, muons, mixed = (
        ([count], [norm(name, *ends)])
        for count, name, ends in [
            (0.46000000834465027, "ucbSRee", (0.79, 1.21)),
            (0.10999999940395355, "ucbSRmm", (0.01, 2.82)),
            (0.007000000216066837, "ucbSRem", (0.01, 3.71)),
        ]
    )
    channels = [
        channel("SRem_cuts", Bkg=mixed),
        channel("SRmm_cuts", Bkg=muons, Slep_1000_10=([0.3183659017086029], modifiers)),
        channel("SRee_cuts", Bkg=electrons),
    ]
    luminosity = {"name": "lumi", "auxdata": [1.0], "sigmas": [0.017], "inits": [1.0]}
    parameters = [
        luminosity | {"bounds": [[0.915, 1.085]]},
        {"name": "mu_Sig", "bounds": [[0.0, 10.0]], "inits": [1.0], "fixed": False},
    ]
    return workspace(channels, [[9.99999993922529e-09]] * 3, parameters, poi="mu_Sig")


LEPTONS = leptons()


class Reference(NamedTuple):
    """Results of pyhf 0.7.6 with JAX and SLSQP; CLs are observed, then expected as above."""

    twonll: dict[str, float]  # of the fits with mu free, 0 and 1
    best: float
    cls: list[float]


REFERENCES = {
    "leptons": Reference(
        {"free": 15.0213897874, "mu0": 15.0213897874, "mu1": 15.6559084517},
        0.0,
        [0.4976186011, 0.205521401, 0.3461419442, 0.5492145199, 0.7794818051, 0.9408057532],
    ),
    # The signal strength is 23 standard deviations from 0: no minimum was found there, and no CLs.
    "ttbar": Reference(
        {"free": 294.946069506, "mu0": 4519135.23484, "mu1": 294.964596883}, 0.994213920339, []
    ),
    "1300_205_60": Reference(
        {"free": 101.375820767, "mu0": 101.375820767, "mu1": 103.31147965},
        0.0,
        [0.2444370258, 0.09022637808, 0.1937858944, 0.3843259154, 0.6557778550, 0.8910430699],
    ),
    "1300_850_60": Reference(
        {"free": 99.2198330177, "mu0": 99.2198330178, "mu1": 111.169116468},
        0.0,
        [9.122537568e-4, 4.38873548e-5, 5.490399474e-4, 5.891870262e-3, 0.04723106095, 0.230752579],
    ),
    "900_250_60": Reference(
        {"free": 98.8409153351, "mu0": 98.8409153349, "mu1": 126.775723883},
        0.0,
        [
            2.28291521e-7, 2.7515870e-9, 1.7474276e-7, 9.2977090e-6, 3.54895009e-4, 7.66371746e-3
        ],
    ),
    "1400_950_60": Reference(
        {"free": 100.250771696, "mu0": 100.250771696, "mu1": 106.365836119},
        0.0,
        [0.02137326791, 2.644696761e-3, 0.01397671096, 0.06497299394, 0.2364447222, 0.57448395],
    ),
    "1500_850_60": Reference(
        {"free": 100.659527368, "mu0": 100.659527368, "mu1": 105.336331257},
        0.0,
        [0.04536751269, 5.984537406e-3, 0.02610296766, 0.1009383779, 0.3101961082, 0.6553659482],
    ),
}  # fmt: skip
