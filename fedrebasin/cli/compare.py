"""``fedrebasin compare``: strategies side by side, over the same trained clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from fedrebasin.simulations import Comparison


def compare(
    strategies: Annotated[
        str,
        typer.Option(
            help="Names with commas. Bases: fedavg, rebasin, merge-many, wide-avg, frank-wolfe, cycle-consistent, "
            "activation, ste; then any of +bn, +repair, +regmean, +seqreg, +head, +temperature: rebasin+head."
        ),
    ] = "fedavg,rebasin,merge-many,wide-avg,rebasin+seqreg+head+temperature",
    dataset: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist, cifar10, cifar100, svhn or image-folder.")
    ] = "digits",
    data_dir: Annotated[str, typer.Option(help="Folder of the data set; digits needs none.")] = "",
    model: Annotated[str, typer.Option(help="mlp, vgg11, vgg16 or resnet20; -bn for BatchNorm: vgg16-bn.")] = "mlp",
    width: Annotated[
        float, typer.Option(help="Units of a hidden layer (mlp) or multiplier; 0: the papers' (512 or 1).")
    ] = 0,
    clients: Annotated[int, typer.Option(help="Number of clients.")] = 4,
    partition: Annotated[str, typer.Option(help="iid, dirichlet, shards or label-skew.")] = "iid",
    alpha: Annotated[float, typer.Option(help="Concentration of the dirichlet partition; small is uneven.")] = 0.5,
    init: Annotated[str, typer.Option(help="Clients' initialisation: independent or shared.")] = "independent",
    rounds: Annotated[int, typer.Option(help="Rounds of federated training.")] = 1,
    local_epochs: Annotated[int, typer.Option(help="A client's passes over its data in a round.")] = 60,
    batch_size: Annotated[int, typer.Option(help="Of local training.")] = 64,
    optimizer: Annotated[str, typer.Option(help="adam (L2 weight decay), adamw (decoupled) or sgd.")] = "adam",
    learning_rate: Annotated[float, typer.Option(help="Of local training.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of local training.")] = 3e-3,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    engine: Annotated[
        str, typer.Option(help="inline (this process) or flower (Flower's simulation engine).")
    ] = "inline",
    out: Annotated[Path | None, typer.Option(help="Folder for results.json and report.html.")] = None,
) -> None:
    """Train clients once and let several strategies merge them; what follows a + works with sums that clients send.

    Example: fedrebasin compare --clients 2 --width 2048 --out wide
    """
    from fedrebasin.simulations import SimulationConfig, write_report
    from fedrebasin.simulations import compare as run

    config = SimulationConfig(
        dataset=dataset,
        data_dir=data_dir,
        model=model,
        width=width,
        clients=clients,
        partition=partition,
        alpha=alpha,
        init=init,
        rounds=rounds,
        local_epochs=local_epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
        device=device,
    )
    names = [name.strip() for name in strategies.split(",") if name.strip()]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # fails now rather than after the training
    with _Bars() as bars:
        comparison = run(config, names, engine=engine, progress=bars)
    console = Console()
    console.print(table_of(comparison))
    if out is not None:
        for path in write_report(out, comparison):
            console.print(f"written: {path}", soft_wrap=True, highlight=False)


def table_of(comparison: Comparison) -> Table:
    """The last row of every strategy, then the reference rows; the best strategy in bold."""
    from fedrebasin.simulations import COLUMNS, REFERENCES, best_row, cells

    config = comparison.config
    table = Table(
        title=f"{config.clients} clients, {config.init} init, {config.dataset} {config.partition}, {config.model}",
        caption=f"all on 80 % of the test set, beta fitted on the other 20 %; {comparison.seconds:.0f} s in all",
    )
    for column in COLUMNS:
        # In a narrow terminal a strategy's long name is folded, never a number.
        shortest = max(len(cells(row)[COLUMNS.index(column)]) for row in comparison.final_rows) if column else 11
        table.add_column(column, justify="right" if column else "left", min_width=shortest, overflow="fold")
    best = best_row([row for row in comparison.final_rows if row.strategy not in REFERENCES])
    for row in comparison.final_rows:
        if row.strategy == REFERENCES[0]:
            table.add_section()
        style = "bold" if row == best else "dim" if row.strategy in REFERENCES else None
        table.add_row(*cells(row), style=style)
    return table


class _Bars:
    """A progress bar for everyone who is at work, gone at the end."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *error: object) -> None:
        if self._tasks:
            self._progress.stop()

    def __call__(self, who: str, done: int, total: int) -> None:
        if who not in self._tasks:
            self._progress.start()  # only now, so that an error before any work is one line and nothing else
            self._tasks[who] = self._progress.add_task(who, total=total)
        self._progress.update(self._tasks[who], completed=done, total=total)
