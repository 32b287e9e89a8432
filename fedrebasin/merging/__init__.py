"""Merging: from many models to one."""

from fedrebasin.merging.align_to import AlignTo
from fedrebasin.merging.average import average
from fedrebasin.merging.identity import Identity
from fedrebasin.merging.merge import Aligner, Merge
from fedrebasin.merging.merge_many import MergeMany

__all__ = ["AlignTo", "Aligner", "Identity", "Merge", "MergeMany", "average"]
