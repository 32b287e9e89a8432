"""Options that several commands have: keys of the run config."""

from __future__ import annotations

from typing import Annotated

import typer

DataSet = Annotated[
    str,
    typer.Option(
        help="digits, mnist, fashion-mnist, cifar10, cifar100, svhn, image-folder, or package.module:function that "
        "gives (train, test)."
    ),
]
DataDir = Annotated[
    str, typer.Option(help="Folder of the data set; digits needs none, others are downloaded without it.")
]
ImageSize = Annotated[int, typer.Option(help="Images of an image folder become squares of this size; 0: 32.")]
Augment = Annotated[str, typer.Option(help="Of training images: none, crop or crop-flip (the papers' for CIFAR).")]
Rounds = Annotated[int, typer.Option(help="Rounds of federated training.")]
LocalEpochs = Annotated[int, typer.Option(help="A client's passes over its data in a round.")]
BatchSize = Annotated[int, typer.Option(help="Of local training.")]
Optimizer = Annotated[str, typer.Option(help="adam (L2 weight decay), adamw (decoupled) or sgd.")]
LearningRate = Annotated[float, typer.Option(help="Of local training.")]
WeightDecay = Annotated[float, typer.Option(help="Of local training.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
