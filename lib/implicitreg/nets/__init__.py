"""What learns: parametrisations of the function that is fitted."""

from implicitreg.nets.cp import (
    CPFactorization,
    component_norms,
    cp_factors,
    cp_tensor,
    gaussian_cp_factors,
    khatri_rao,
)
from implicitreg.nets.factorization import (
    DeepLinear,
    balanced_factors,
    gaussian_factors,
    gaussian_matrices,
    identity_factors,
    imbalance,
    product,
)
from implicitreg.nets.initialisation import he_normal_, he_weights
from implicitreg.nets.neuron import Activation, LogSlopeActivation, hidden_neuron, relu, single_neuron
from implicitreg.nets.paths import log_path_sum, path_scales, path_sum, shared_path_scales
from implicitreg.nets.perceptron import gaussian_weights, outputs, perceptron, rescale_nodes, unbalanced_weights
from implicitreg.nets.recurrent import ReLURecurrent
from implicitreg.nets.residual import Residual
from implicitreg.nets.shattering import deepened, hypercube, shattering_network, side_by_side

__all__ = [
    "Activation",
    "CPFactorization",
    "DeepLinear",
    "LogSlopeActivation",
    "ReLURecurrent",
    "Residual",
    "balanced_factors",
    "component_norms",
    "cp_factors",
    "cp_tensor",
    "deepened",
    "gaussian_cp_factors",
    "gaussian_factors",
    "gaussian_matrices",
    "gaussian_weights",
    "he_normal_",
    "he_weights",
    "hidden_neuron",
    "hypercube",
    "identity_factors",
    "imbalance",
    "khatri_rao",
    "log_path_sum",
    "outputs",
    "path_scales",
    "path_sum",
    "perceptron",
    "product",
    "relu",
    "rescale_nodes",
    "shared_path_scales",
    "shattering_network",
    "side_by_side",
    "single_neuron",
    "unbalanced_weights",
]
