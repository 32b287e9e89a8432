"""Merging: from many models to one."""

from fedrebasin.merging.align_to import AlignTo
from fedrebasin.merging.average import average, normalised
from fedrebasin.merging.cycle_consistent import CycleConsistent
from fedrebasin.merging.identity import Identity
from fedrebasin.merging.in_pieces import MeanInPieces, permuted, rounded
from fedrebasin.merging.merge import Merge, cosine, unmoved
from fedrebasin.merging.merge_many import MergeMany
from fedrebasin.merging.protocol import Aligner, Placer, TwoStepAligner, two_step
from fedrebasin.merging.reference import medoid, started_from

__all__ = [
    "AlignTo",
    "Aligner",
    "CycleConsistent",
    "Identity",
    "MeanInPieces",
    "Merge",
    "MergeMany",
    "Placer",
    "TwoStepAligner",
    "average",
    "cosine",
    "medoid",
    "normalised",
    "permuted",
    "rounded",
    "started_from",
    "two_step",
    "unmoved",
]
