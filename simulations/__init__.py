"""Federations to compare strategies in: data sets, partitions, one Flower app, and the comparison."""

from .choices import BASES, CALIBRATORS, make_strategy, parse_strategy
from .client_app import make_client_app
from .compare import DEFAULT_STRATEGIES, Comparison, compare, run_strategy
from .config import DATASETS, DEVICES, INITS, OPTIMIZERS, PARTITIONS, SimulationConfig
from .datasets import Dataset, load_dataset
from .engines import ENGINES, on_engine
from .experiments import EXPERIMENTS, SCALES, Experiment, Record, Result, draw, reproduce
from .federation import Federation
from .idx import read_idx
from .inline import InlineGrid, enter_task, run_inline
from .measure import REFERENCES, Figures, Judge, Row
from .partitions import dirichlet, from_partitioner, iid, label_skew, make_partition, shards
from .replay import ReplayGrid
from .report import COLUMNS, best_row, cells, write_report
from .results import write_results

__all__ = [
    "BASES",
    "CALIBRATORS",
    "COLUMNS",
    "DATASETS",
    "DEFAULT_STRATEGIES",
    "DEVICES",
    "ENGINES",
    "EXPERIMENTS",
    "INITS",
    "OPTIMIZERS",
    "PARTITIONS",
    "REFERENCES",
    "SCALES",
    "Comparison",
    "Dataset",
    "Experiment",
    "Federation",
    "Figures",
    "InlineGrid",
    "Judge",
    "Record",
    "ReplayGrid",
    "Result",
    "Row",
    "SimulationConfig",
    "best_row",
    "cells",
    "compare",
    "dirichlet",
    "draw",
    "enter_task",
    "from_partitioner",
    "iid",
    "label_skew",
    "load_dataset",
    "make_client_app",
    "make_partition",
    "make_strategy",
    "on_engine",
    "parse_strategy",
    "read_idx",
    "reproduce",
    "run_inline",
    "run_strategy",
    "shards",
    "write_report",
    "write_results",
]
