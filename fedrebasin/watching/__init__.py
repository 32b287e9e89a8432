# mypy: implicit-reexport
"""What a running model reads and gives: one observer of its products, norms, activation functions and modules."""

from fedrebasin.watching.observer import Activation, LayerRun, Norm, module_named, watch, watching
from fedrebasin.watching.products import Product
from fedrebasin.watching.units import unit_activations
from fedrebasin.watching.units import unit_places as unit_places
from fedrebasin.watching.weights import affine_matrix, bias_of, with_affine_matrix
from fedrebasin.watching.weights import affine_weights as affine_weights
from fedrebasin.watching.weights import head_weight as head_weight
