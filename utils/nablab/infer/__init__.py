"""Statistical inference whose every number has a gradient: fits, tests, limits, intervals."""

from nablab.infer import posterior, pseudoexperiments, toy_hypotests
from nablab.infer.certificates import Certificate, Fit, Status
from nablab.infer.diagnostics import (
    covariance,
    goodness_of_fit,
    impacts,
    information,
    observed_covariance,
    observed_information,
    poi_uncertainty,
    prefit_widths,
    pulls,
    sensitivity_map,
)
from nablab.infer.fixed_points import adjoint, two_phase, unrolled
from nablab.infer.hypotests import asimov_data, cls, expected_cls, expected_p0, p0
from nablab.infer.intervals import feldman_cousins
from nablab.infer.limits import LimitStatus, expected_upper_limit, upper_limit
from nablab.infer.minimizer import minimize
from nablab.infer.mle import best_fit, profile_grid, profile_scan
from nablab.infer.profile_intervals import ProfileInterval, profile_interval
from nablab.infer.test_statistics import q0, qmu, qmu_tilde, tmu, tmu_tilde

__all__ = [
    "Certificate",
    "Fit",
    "LimitStatus",
    "ProfileInterval",
    "Status",
    "adjoint",
    "asimov_data",
    "best_fit",
    "cls",
    "covariance",
    "expected_cls",
    "expected_p0",
    "expected_upper_limit",
    "feldman_cousins",
    "goodness_of_fit",
    "impacts",
    "information",
    "minimize",
    "observed_covariance",
    "observed_information",
    "p0",
    "poi_uncertainty",
    "posterior",
    "prefit_widths",
    "profile_grid",
    "profile_interval",
    "profile_scan",
    "pseudoexperiments",
    "pulls",
    "q0",
    "qmu",
    "qmu_tilde",
    "sensitivity_map",
    "tmu",
    "tmu_tilde",
    "toy_hypotests",
    "two_phase",
    "unrolled",
    "upper_limit",
]
