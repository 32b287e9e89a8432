"""Federations to compare strategies in: data sets, partitions, one Flower app, and the comparison."""

from .choices import BASES, CALIBRATORS, make_strategy, parse_strategy
from .client_app import make_client_app
from .compare import DEFAULT_STRATEGIES, compare, run_strategy
from .comparison import Comparison
from .config import DATASETS, DEVICES, INITS, OPTIMIZERS, PARTITIONS, SimulationConfig
from .datasets import Dataset, load_dataset
from .engines import ENGINES, on_engine
from .experiments import EXPERIMENTS, SCALES, Experiment, Record, Result, draw, reproduce
from .federation import Federation
from .figures import REFERENCES, Bin, Figures, Row
from .grid import run_study
from .idx import read_idx
from .inline import InlineGrid, enter_task, run_inline
from .judge import Judge
from .moved import MovedUnits
from .origin import Origin
from .partitions import dirichlet, from_partitioner, iid, label_skew, make_partition, shards
from .replay import ReplayGrid
from .report import write_experiment, write_page, write_report
from .report_path import draw_paths
from .report_picture import write_picture
from .results import read_results, write_results
from .study import Setting, Study, Summary, expand
from .table import COLUMNS, cells
from .words import in_words

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
    "Bin",
    "Comparison",
    "Dataset",
    "Experiment",
    "Federation",
    "Figures",
    "InlineGrid",
    "Judge",
    "MovedUnits",
    "Origin",
    "Record",
    "ReplayGrid",
    "Result",
    "Row",
    "Setting",
    "SimulationConfig",
    "Study",
    "Summary",
    "cells",
    "compare",
    "dirichlet",
    "draw",
    "draw_paths",
    "enter_task",
    "expand",
    "from_partitioner",
    "iid",
    "in_words",
    "label_skew",
    "load_dataset",
    "make_client_app",
    "make_partition",
    "make_strategy",
    "on_engine",
    "parse_strategy",
    "read_idx",
    "read_results",
    "reproduce",
    "run_inline",
    "run_strategy",
    "run_study",
    "shards",
    "write_experiment",
    "write_page",
    "write_picture",
    "write_report",
    "write_results",
]
