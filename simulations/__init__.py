"""Federations to compare strategies in: data sets, partitions, one Flower app, and the comparison.

Names are loaded when they are first asked for; ``data``, ``training``, ``papers`` and ``report`` do without Flower.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING
from typing import Any as _Any

# isort: off
if TYPE_CHECKING:  # the same names as below; "X as X" offers them to type checkers
    from .app import (
        Judge as Judge,
        MovedUnits as MovedUnits,
        make_client_app as make_client_app,
        make_strategy as make_strategy,
        parse_strategy as parse_strategy,
        run_strategy as run_strategy,
    )
    from .comparison import DEFAULT_STRATEGIES as DEFAULT_STRATEGIES, compare as compare, run_study as run_study
    from .config import (
        DATASETS as DATASETS,
        DEVICES as DEVICES,
        INITS as INITS,
        OPTIMIZERS as OPTIMIZERS,
        PARTITIONS as PARTITIONS,
        SimulationConfig as SimulationConfig,
    )
    from .data import (
        Dataset as Dataset,
        dirichlet as dirichlet,
        from_partitioner as from_partitioner,
        iid as iid,
        label_skew as label_skew,
        load_dataset as load_dataset,
        make_partition as make_partition,
        read_idx as read_idx,
        shards as shards,
    )
    from .engines import (
        ENGINES as ENGINES,
        InlineGrid as InlineGrid,
        ReplayGrid as ReplayGrid,
        enter_task as enter_task,
        on_engine as on_engine,
        run_inline as run_inline,
    )
    from .papers import (
        EXPERIMENTS as EXPERIMENTS,
        SCALES as SCALES,
        Experiment as Experiment,
        Record as Record,
        Result as Result,
        reproduce as reproduce,
    )
    from .registries import BASES as BASES, CALIBRATORS as CALIBRATORS, LOADERS as LOADERS, STRATEGIES as STRATEGIES
    from .report import (
        COLUMNS as COLUMNS,
        REFERENCES as REFERENCES,
        Bin as Bin,
        Comparison as Comparison,
        Figures as Figures,
        Origin as Origin,
        Row as Row,
        Setting as Setting,
        Study as Study,
        Summary as Summary,
        cells as cells,
        draw as draw,
        draw_difference as draw_difference,
        draw_paths as draw_paths,
        expand as expand,
        in_words as in_words,
        read_results as read_results,
        write_experiment as write_experiment,
        write_page as write_page,
        write_picture as write_picture,
        write_report as write_report,
        write_results as write_results,
        write_table as write_table,
    )
    from .training import Federation as Federation
# isort: on

_OFFERED = {
    "app": "Judge MovedUnits make_client_app make_strategy parse_strategy run_strategy",
    "comparison": "DEFAULT_STRATEGIES compare run_study",
    "config": "DATASETS DEVICES INITS OPTIMIZERS PARTITIONS SimulationConfig",
    "data": """
        Dataset dirichlet from_partitioner iid label_skew load_dataset make_partition read_idx shards
    """,
    "engines": "ENGINES InlineGrid ReplayGrid enter_task on_engine run_inline",
    "papers": "EXPERIMENTS SCALES Experiment Record Result reproduce",
    "registries": "BASES CALIBRATORS LOADERS STRATEGIES",
    "report": """
        COLUMNS REFERENCES Bin Comparison Figures Origin Row Setting Study Summary cells draw draw_difference draw_paths
        expand in_words read_results write_experiment write_page write_picture write_report write_results
        write_table
    """,
    "training": "Federation",
}
_HOMES = {name: f"{__name__}.{room}" for room, names in _OFFERED.items() for name in names.split()}

if not TYPE_CHECKING:
    __all__ = sorted(_HOMES)

    def __getattr__(name: str) -> _Any:
        if name in _HOMES:
            return globals().setdefault(name, getattr(_import_module(_HOMES[name]), name))
        if name in _OFFERED:
            return _import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
