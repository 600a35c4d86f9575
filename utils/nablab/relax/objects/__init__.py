"""Jets and leptons: padded collections, multiplicities, pairings and b-tags."""

from nablab.relax.objects.btagging import btag_log_weight, working_point
from nablab.relax.objects.multiplicities import (
    at_least,
    gaussian_log_weight,
    log_at_least,
    log_multiplicity,
    multiplicity,
    soft_count,
    veto_log_weight,
)
from nablab.relax.objects.padding import hard_top_k, pad_objects, soft_top_k
from nablab.relax.objects.pairing import hard_pairing, pair_masses, soft_pairing

__all__ = [
    "at_least",
    "btag_log_weight",
    "gaussian_log_weight",
    "hard_pairing",
    "hard_top_k",
    "log_at_least",
    "log_multiplicity",
    "multiplicity",
    "pad_objects",
    "pair_masses",
    "soft_count",
    "soft_pairing",
    "soft_top_k",
    "veto_log_weight",
    "working_point",
]
