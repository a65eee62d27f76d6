"""What we look at: norms, ranks and curvatures of what has been learned."""

from implicitreg.measures.capacity import Capacities, capacities, margin, margins
from implicitreg.measures.flatness import (
    ExpectedSharpness,
    expected_sharpness,
    pac_bayes_kl,
    pac_bayes_kl_at,
    sharpness,
)
from implicitreg.measures.norms import frobenius_product, group_norm, path_norm, spectral_product
from implicitreg.measures.rademacher import (
    RademacherComplexity,
    largest_correlation,
    linear_rademacher,
    norm_ball_bound,
    rademacher_complexity,
    sign_patterns,
    two_layer_rademacher,
    width_exponent,
)
from implicitreg.measures.spectral import distance_from_rank, effective_rank, schatten_norm
from implicitreg.measures.tensors import CPRank, cp_rank, reconstruction_error
from implicitreg.nets.perceptron import rescale_nodes

__all__ = [
    "CPRank",
    "Capacities",
    "ExpectedSharpness",
    "RademacherComplexity",
    "capacities",
    "cp_rank",
    "distance_from_rank",
    "effective_rank",
    "expected_sharpness",
    "frobenius_product",
    "group_norm",
    "largest_correlation",
    "linear_rademacher",
    "margin",
    "margins",
    "norm_ball_bound",
    "pac_bayes_kl",
    "pac_bayes_kl_at",
    "path_norm",
    "rademacher_complexity",
    "reconstruction_error",
    "rescale_nodes",
    "schatten_norm",
    "sharpness",
    "sign_patterns",
    "spectral_product",
    "two_layer_rademacher",
    "width_exponent",
]
