"""Training an analysis on the number it publishes."""

from nablab.train import inferno
from nablab.train.histories import ALL_DONE, INTERRUPTED, Training
from nablab.train.loop import annealed, clamped, train, train_seeds
from nablab.train.networks import MLP, mlp
from nablab.train.objectives import (
    asimov_significance,
    balanced_cross_entropy,
    cross_entropy,
    dependence,
    log_cls,
    log_cls_and_p0,
    log_generalised_variance,
    log_limit,
    log_p0,
    negative_rates,
    reversed_gradient,
    s_over_sqrt_b,
)

__all__ = [
    "ALL_DONE",
    "INTERRUPTED",
    "MLP",
    "Training",
    "annealed",
    "asimov_significance",
    "balanced_cross_entropy",
    "clamped",
    "cross_entropy",
    "dependence",
    "inferno",
    "log_cls",
    "log_cls_and_p0",
    "log_generalised_variance",
    "log_limit",
    "log_p0",
    "mlp",
    "negative_rates",
    "reversed_gradient",
    "s_over_sqrt_b",
    "train",
    "train_seeds",
]
