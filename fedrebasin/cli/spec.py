"""``fedrebasin spec``: which units of a model can be permuted without changing its function."""

import time
from pathlib import Path
from typing import Annotated

import typer

from fedrebasin.cli import options as opt
from fedrebasin.cli.show import AsJson, print_json


def spec(
    model: Annotated[
        str,
        typer.Option(
            help="torchvision:NAME, timm:NAME, transformers:FOLDER with its config.json, or package.module:callable, "
            "which is called without arguments."
        ),
    ],
    inputs: opt.Inputs = None,
    out: Annotated[Path | None, typer.Option(help="Write the spec to this JSON file.")] = None,
    json: Annotated[bool, AsJson] = False,
) -> None:
    """Print the permutation spec of a model.

    Example: fedrebasin spec --model torchvision:resnet50
    """
    from fedrebasin.cli.inputs import named_model, spec_of
    from fedrebasin.spec import json as spec_json

    started = time.perf_counter()
    traced = spec_of(named_model(model), inputs or [])
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
