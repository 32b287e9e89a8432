"""``fedrebasin spec``: which units of a model can be permuted without changing its function."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fedrebasin.cli.show import AsJson, print_json


def spec(
    model: Annotated[
        str, typer.Option(help="torchvision:NAME, or package.module:callable, which is called without arguments.")
    ],
    inputs: Annotated[str, typer.Option("--input", help="Shape of an example input.")] = "1,3,224,224",
    out: Annotated[Path | None, typer.Option(help="Write the spec to this JSON file.")] = None,
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Print the permutation spec of a model.

    Example: fedrebasin spec --model torchvision:resnet50
    """
    from fedrebasin.cli.models import load_model, traced_spec
    from fedrebasin.spec import json as spec_json

    started = time.perf_counter()
    traced = traced_spec(model, load_model(model), inputs)
    seconds = time.perf_counter() - started
    if out is not None:
        traced.save(out)
    if json:
        print_json(spec_json.encode(traced))
        return
    typer.echo(str(traced))
    typer.echo(f"traced and checked in {seconds:.1f} s" if traced.checked else f"traced in {seconds:.1f} s")
    if out is not None:
        typer.echo(f"written: {out}")
