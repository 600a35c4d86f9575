"""Whether the result of a training is worth anything."""

from nablab.judge.calibration import Coverage, coverage
from nablab.judge.dependence import best_mu, constraints, observed_cls, robustness
from nablab.judge.expectations import expected_interval, positivity
from nablab.judge.reports import Report, report
from nablab.judge.resampling import second_sample
from nablab.judge.tables import Table, two_digits, with_error

__all__ = [
    "Coverage",
    "Report",
    "Table",
    "best_mu",
    "constraints",
    "coverage",
    "expected_interval",
    "observed_cls",
    "positivity",
    "report",
    "robustness",
    "second_sample",
    "two_digits",
    "with_error",
]
