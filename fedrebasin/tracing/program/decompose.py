"""Operators without a rule, written in terms of simpler ones where torch knows how."""

from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx


def tensor_nodes(node: fx.Node) -> list[fx.Node]:
    """The distinct nodes among a call's arguments that stand for tensors."""
    return [one for one in node.all_input_nodes if isinstance(one.meta.get("val"), Tensor)]


def decomposed(node: fx.Node) -> fx.GraphModule | None:
    """The graph of a call in simpler operators, one placeholder for each of its tensors; None if there is none."""
    target = node.target
    inputs = tensor_nodes(node)
    if not isinstance(target, torch._ops.OpOverload) or len(inputs) < len(node.all_input_nodes):
        return None
    simpler = decomposition_table.get(target)
    if simpler is None:
        if not target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            return None
        simpler = target.decompose

    def call(*tensors: Tensor) -> Any:
        given = dict(zip(inputs, tensors, strict=True))
        return simpler(*fx.map_arg(node.args, given.__getitem__), **fx.map_arg(node.kwargs, given.__getitem__))

    try:
        graph = make_fx(call)(*(one.meta["val"] for one in inputs))
    except Exception:
        # Whatever a decomposition stumbles over, the operator is then one without a rule.
        return None
    if any(one.target is target for one in graph.graph.nodes):
        return None
    return graph
