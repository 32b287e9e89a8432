"""Where a group's units can be seen while a model runs.

Simultaneous connectivity, Appendix A: a group that lies in several layers (a residual stream) is matched by the
activations of the last of them. In general: the input of the last module to run that reads the group's units, which
is after the nonlinearity and after the last residual addition; where no module reads them, the output of the last one
that writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fedrebasin.spec import Axis, PermutationSpec


@dataclass(frozen=True)
class Site:
    """A module that reads or writes a group's units.

    Args:
        group: its name.
        axis: the parameter's axis, as it lies in a tensor of the feature dimension alone.
        module: its name in the model.
        feature: the feature dimension of its input (``reads``) or output.
        reads: whether the units are seen in its input.
    """

    group: str
    axis: Axis
    module: str
    feature: int
    reads: bool


def sites_of(spec: PermutationSpec, model: nn.Module) -> tuple[Site, ...]:
    """All sites of all groups, by the modules that own the groups' parameters."""
    modules = dict(model.named_modules())
    found = []
    for group in spec.groups.values():
        for axis in group.axes:
            name, _, parameter = axis.key.rpartition(".")
            if parameter != "weight" or name not in modules:
                continue
            if not axis.lies_on_one_dimension:
                continue
            seen = _seen(modules[name], axis.dim)
            if seen is not None:
                found.append(Site(group.name, axis.alone(), name, *seen))
    return tuple(found)


def _seen(module: nn.Module, dim: int) -> tuple[int, bool] | None:
    """Feature dimension of the activation, and whether it is the input, for one dimension of a module's weight."""
    match module:
        case nn.Linear() if dim < 2:
            return -1, dim == 1
        case _ConvTransposeNd() if dim < 2:
            return 1, dim == 0
        case _ConvNd() if dim == 0 or (dim == 1 and module.groups == 1):
            return 1, dim == 1
        case nn.Embedding() if dim == 1:
            return -1, False
        case _BatchNorm() | nn.GroupNorm() | nn.modules.instancenorm._InstanceNorm():
            return 1, False
        case nn.LayerNorm():
            return dim - module.weight.dim(), False
        case _:
            return None


@contextmanager
def watched(model: nn.Module, sites: tuple[Site, ...], depth: dict[str, int]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, every run of the model leaves each group's activations in the dictionary that it yields.

    They have shape (units of all blocks, samples x positions): of the last module that ran and reads the group.
    """
    seen: dict[str, Tensor] = {}
    read: set[str] = set()

    def note(site: Site, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        if not isinstance(value, Tensor) or (site.group in read and not site.reads):
            return
        if site.reads:
            read.add(site.group)
        features = value.detach().movedim(site.feature, 0)
        features = features.reshape(len(features), -1)
        levels = depth[site.group]
        seen[site.group] = site.axis.units(features, levels).flatten(0, levels - 1)

    def before(site: Site, module: nn.Module, inputs: Any) -> None:
        note(site, inputs)

    def after(site: Site, module: nn.Module, inputs: Any, output: Any) -> None:
        note(site, output)

    modules = dict(model.named_modules())
    handles = [
        modules[site.module].register_forward_pre_hook(partial(before, site))
        if site.reads
        else modules[site.module].register_forward_hook(partial(after, site))
        for site in sites
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
