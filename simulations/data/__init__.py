# mypy: implicit-reexport
"""Data sets and their partitions."""

from .datasets import Dataset, cifar10, cifar100, digits, fashion_mnist, image_folder, load_dataset, mnist, svhn
from .idx import read_idx
from .partitions import Indices, dirichlet, from_partitioner, iid, label_skew, make_partition, shards
