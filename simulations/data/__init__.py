"""Data sets and their partitions."""

from .datasets import Dataset, cifar10, cifar100, digits, fashion_mnist, image_folder, load_dataset, mnist, svhn
from .idx import read_idx
from .partitions import Indices, dirichlet, from_partitioner, iid, label_skew, make_partition, shards

__all__ = [
    "Dataset",
    "Indices",
    "cifar10",
    "cifar100",
    "digits",
    "dirichlet",
    "fashion_mnist",
    "from_partitioner",
    "iid",
    "image_folder",
    "label_skew",
    "load_dataset",
    "make_partition",
    "mnist",
    "read_idx",
    "shards",
    "svhn",
]
