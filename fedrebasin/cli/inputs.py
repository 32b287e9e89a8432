"""The checkpoints that a command is given, with their model and spec."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from fedrebasin.cli.examples import example_inputs, traced_spec
from fedrebasin.cli.models import load_model, with_classes
from fedrebasin.errors import MergeError
from fedrebasin.files import CheckpointSet, config_of, load_checkpoint, open_checkpoints
from fedrebasin.spec import PermutationSpec

_TRANSFORMERS = "transformers"


@dataclass(frozen=True, eq=False)
class NamedModel:
    """A model by its name.

    Args:
        name: as it was given, or as a folder says.
        module: with its initial parameters, or on the meta device.
        example: gives inputs, where the library says what they are; None where they must be given.
        in_files: what the library calls the tensors in its files, where that is something else.
    """

    name: str
    module: nn.Module
    example: Callable[[], Any] | None = None
    in_files: Mapping[str, str] = field(default_factory=dict)


def named_model(name: str, run: bool = True) -> NamedModel:
    """A model by its name: see :func:`fedrebasin.cli.models.load_model`, or ``transformers:FOLDER``.

    Args:
        name: of the model.
        run: whether it is to be run, however large it is; else very large ones lie on the meta device.

    Raises:
        RebasinError: if there is no such model.
    """
    library, _, rest = name.partition(":")
    if library == _TRANSFORMERS and rest:
        from fedrebasin.cli.transformers import example_of, model_of, names_in_files

        module = model_of(Path(rest), run)
        return NamedModel(name, module, lambda: example_of(module), names_in_files(module))
    module = load_model(name)
    size = (getattr(module, "default_cfg", None) or {}).get("input_size") if library == "timm" else None
    return NamedModel(name, module, (lambda: example_inputs(["2," + ",".join(map(str, size))])) if size else None)


def name_in(folder: Path) -> str:
    """The model that a folder's ``config.json`` names, "" where it names none.

    Raises:
        RebasinError: if the configuration is not readable.
    """
    config = config_of(folder) if folder.is_dir() else {}
    if config.get("architectures") and config.get("model_type"):
        return f"{_TRANSFORMERS}:{folder}"
    if isinstance(config.get("architecture"), str):
        classes = config.get("num_classes")
        return f"timm:{config['architecture']}" + (f",num_classes={classes}" if isinstance(classes, int) else "")
    return ""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a command works on.

    Args:
        opened: the checkpoints.
        model: None where they are merged by names and shapes.
        spec: from a file; None where it is traced.
    """

    opened: CheckpointSet
    model: NamedModel | None
    spec: PermutationSpec | None

    def bound_spec(self, texts: Sequence[str], shape: str = "1,3,224,224") -> PermutationSpec:
        """The permutations that the model allows, bound to the checkpoints.

        Args:
            texts: example inputs as they were given, see :func:`example_inputs`.
            shape: of an input, where none was given and the model does not say.

        Raises:
            RebasinError: if they cannot be had, or do not fit.
        """
        if self.spec is not None:
            return self.spec.rename_like(self.opened.first).bind(self.opened.first)
        if self.model is None:
            return self.opened.plain_stack()
        return spec_of(self.model, texts, shape).bind(self.opened.first)


def spec_of(model: NamedModel, texts: Sequence[str], shape: str = "1,3,224,224") -> PermutationSpec:
    """The spec of a model by name, traced with inputs that were given, that the library knows, or of this shape.

    Raises:
        RebasinError: if it cannot be traced with them.
    """
    if not texts and model.example is not None:
        return traced_spec(model.name, model.module, model.example())
    what = " ".join(texts) or f"{shape}, which is a guess (pass --input with the channels and sizes that it takes)"
    return traced_spec(model.name, model.module, example_inputs(texts or [shape]), what)


def open_inputs(
    paths: Sequence[Path],
    model: str = "",
    base: Path | None = None,
    spec: Path | None = None,
    *,
    key: str = "",
    prefix: str = "",
    run: bool = False,
    needed: bool = True,
) -> Inputs:
    """Open checkpoints and demand that they fit the model, or else the first of them.

    Args:
        paths: of the checkpoints: files or folders.
        model: its name, a spec's file, or "": then a folder's configuration may name it.
        base: another checkpoint.
        spec: a spec's file, instead of tracing the model.
        key: the entry of torch files that is the model, "" for the usual one.
        prefix: of the keys that are the model, "" for the likely one.
        run: whether the model is to be run.
        needed: whether a model is looked for in folders.

    Raises:
        RebasinError: if a file cannot be read, there is no such model, or a checkpoint is of another architecture.
    """
    if model.endswith(".json"):
        if spec is not None:
            raise MergeError(f"--model {model} and --spec {spec}: give one of them")
        model, spec = "", Path(model)
    groups = None if spec is None else PermutationSpec.load(spec)
    leading = base or paths[0]
    if not model and needed and (run or groups is None or groups.misfits(load_checkpoint(leading, key).state)):
        model = name_in(leading)
    if not model:
        opened = open_checkpoints(paths, base, key=key, prefix=prefix, spec=groups)
        return Inputs(opened, None, groups)
    named = named_model(model, run)
    first = load_checkpoint(leading, key).without_prefix(list(named.module.state_dict()))
    named = NamedModel(model, with_classes(model, named.module, first.state), named.example, named.in_files)
    opened = open_checkpoints(
        paths, base, named.module, model, key=key, prefix=prefix, in_files=named.in_files, spec=groups
    )
    return Inputs(opened, named, groups)
