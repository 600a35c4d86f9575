"""HistFactory likelihoods: read, written and built, with every number free to be traced."""

from nablab.model import interpolation, simplemodels, workspaces
from nablab.model.histfactory import Model, from_pyhf, from_spec
from nablab.model.named_numbers import numbers, with_numbers

__all__ = [
    "Model",
    "from_pyhf",
    "from_spec",
    "interpolation",
    "numbers",
    "simplemodels",
    "with_numbers",
    "workspaces",
]
