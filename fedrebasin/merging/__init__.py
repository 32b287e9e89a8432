"""Merging: from many models to one."""

from fedrebasin.merging.align_to import AlignTo
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.cycle_consistent import CycleConsistent
from fedrebasin.merging.identity import Identity
from fedrebasin.merging.in_pieces import MeanInPieces
from fedrebasin.merging.medoid import medoid
from fedrebasin.merging.merge import Aligner, Merge, cosine
from fedrebasin.merging.merge_many import MergeMany
from fedrebasin.merging.started_from import started_from

__all__ = [
    "AlignTo",
    "Aligner",
    "CycleConsistent",
    "Identity",
    "MeanInPieces",
    "Merge",
    "MergeMany",
    "average",
    "cosine",
    "medoid",
    "normalised",
    "started_from",
]
