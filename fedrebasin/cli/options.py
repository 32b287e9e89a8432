"""Options that several commands have, and what they may be; nothing here loads torch, so that help is there at once."""

from __future__ import annotations

from typing import Annotated

import typer

MODEL_HELP = "torchvision:NAME, or package.module:callable, which is called without arguments; not for plain stacks."
DATA_HELP = "A data set's name, a folder of images by class, or package.module:function giving (train, test)."

#: How files are merged.
METHODS = ("weight-matching", "frank-wolfe", "merge-many", "cycle-consistent", "average")
#: The methods that align to one model, which may be a base; they hold one model's pages at a time.
REFERENCED = ("weight-matching", "frank-wolfe", "average")

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
