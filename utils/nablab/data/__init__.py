"""Events: generators of toy samples, and real open data (``data.opendata``)."""

from nablab.data import opendata
from nablab.data.objects_toy import expected_fractions, jets_and_leptons
from nablab.data.toys import (
    BLOB_MEANS,
    blobs,
    cut_example,
    inferno,
    inferno_background,
    moving_gaussian,
    two_modes,
)

__all__ = [
    "BLOB_MEANS",
    "blobs",
    "cut_example",
    "expected_fractions",
    "inferno",
    "inferno_background",
    "jets_and_leptons",
    "moving_gaussian",
    "opendata",
    "two_modes",
]
