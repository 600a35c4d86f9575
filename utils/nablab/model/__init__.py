"""HistFactory likelihoods: read, written and built, with every number free to be traced."""

from nablab.model import interpolation, simplemodels, workspaces
from nablab.model.histfactory import Model, from_pyhf, from_spec
from nablab.model.named_numbers import numbers, with_numbers
from nablab.model.positivity import NegativeRates, lowest_rates, varied_rates

__all__ = [
    "Model",
    "NegativeRates",
    "from_pyhf",
    "from_spec",
    "interpolation",
    "lowest_rates",
    "numbers",
    "simplemodels",
    "varied_rates",
    "with_numbers",
    "workspaces",
]
