"""Jets and leptons: padded collections, multiplicities, pairings and b-tags."""

from nablab.relax.objects.btagging import btag_log_weight, working_point
from nablab.relax.objects.multiplicities import at_least, multiplicity, veto_log_weight
from nablab.relax.objects.padding import pad_objects
from nablab.relax.objects.pairing import hard_pairing, pair_masses, soft_pairing

__all__ = [
    "at_least",
    "btag_log_weight",
    "hard_pairing",
    "multiplicity",
    "pad_objects",
    "pair_masses",
    "soft_pairing",
    "veto_log_weight",
    "working_point",
]
