"""Data sets and their partitions."""

from .datasets import Dataset, load_dataset
from .idx import read_idx
from .partitions import Indices, dirichlet, from_partitioner, iid, label_skew, make_partition, shards

__all__ = [
    "Dataset",
    "Indices",
    "dirichlet",
    "from_partitioner",
    "iid",
    "label_skew",
    "load_dataset",
    "make_partition",
    "read_idx",
    "shards",
]
