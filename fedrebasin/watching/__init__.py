"""What a running model reads and gives: one observer of its products, norms, activation functions and modules."""

from fedrebasin.watching.observer import Activation, LayerRun, Norm, module_named, watch, watching
from fedrebasin.watching.products import Product
from fedrebasin.watching.units import unit_activations, unit_places
from fedrebasin.watching.weights import affine_matrix, affine_weights, bias_of, head_weight, with_affine_matrix

__all__ = [
    "Activation",
    "LayerRun",
    "Norm",
    "Product",
    "affine_matrix",
    "affine_weights",
    "bias_of",
    "head_weight",
    "module_named",
    "unit_activations",
    "unit_places",
    "watch",
    "watching",
    "with_affine_matrix",
]
