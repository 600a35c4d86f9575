"""Soft versions of the steps that have no gradient, and their hard originals."""

from nablab.relax import objects
from nablab.relax.counts import Counts
from nablab.relax.cuts import (
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
    covariance,
    gradient_counts,
    score_function_gradient,
    straight_through,
)
from nablab.relax.histograms import hard_counts, kde_counts, softmax_counts
from nablab.relax.histograms2d import hard_counts_2d, kde_counts_2d
from nablab.relax.probes import choose_bandwidth, choose_slope, probe
from nablab.relax.splines import spline_counts

__all__ = [
    "Counts",
    "boundary_gradient",
    "choose_bandwidth",
    "choose_slope",
    "covariance",
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
    "warn_of_preselection",
]
