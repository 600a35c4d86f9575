"""Soft versions of the steps that have no gradient, and their hard originals."""

from nablab.relax import objects
from nablab.relax.cuts import (
    annealed,
    hard_cut,
    hard_ellipse,
    log_soft_cut,
    soft_cut,
    soft_ellipse,
    spread,
    warn_of_preselection,
)
from nablab.relax.edges import ordered_edges
from nablab.relax.estimators import (
    boundary_gradient,
    score_function_gradient,
    straight_through,
)
from nablab.relax.hist_io import from_hist, gradient_counts, to_hist
from nablab.relax.histograms import Counts, hard_counts, kde_counts, softmax_counts
from nablab.relax.histograms2d import hard_counts_2d, kde_counts_2d
from nablab.relax.probes import choose_bandwidth, choose_slope, probe
from nablab.relax.splines import spline_counts

__all__ = [
    "Counts",
    "annealed",
    "boundary_gradient",
    "choose_bandwidth",
    "choose_slope",
    "from_hist",
    "gradient_counts",
    "hard_counts",
    "hard_counts_2d",
    "hard_cut",
    "hard_ellipse",
    "kde_counts",
    "kde_counts_2d",
    "log_soft_cut",
    "objects",
    "ordered_edges",
    "probe",
    "score_function_gradient",
    "soft_cut",
    "soft_ellipse",
    "softmax_counts",
    "spline_counts",
    "spread",
    "straight_through",
    "to_hist",
    "warn_of_preselection",
]
