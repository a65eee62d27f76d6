"""What we look at: norms, ranks and curvatures of what has been learned."""

from implicitreg.measures.capacity import Capacities, capacities, margin, margins
from implicitreg.measures.complexity import GeometricComplexity, geometric_complexity
from implicitreg.measures.flatness import (
    ExpectedSharpness,
    expected_sharpness,
    pac_bayes_kl,
    pac_bayes_kl_at,
    sharpness,
)
from implicitreg.measures.hessian import HessianEigenvalues, HessianTrace, hessian_eigenvalues, hessian_trace
from implicitreg.measures.layerwise import LayerNorms, layer_norms
from implicitreg.measures.norms import frobenius_product, group_norm, path_norm, spectral_product
from implicitreg.measures.panel import Measured, Report, report
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
from implicitreg.measures.segment_laws import (
    angle,
    augmented,
    expected_breakpoints,
    expected_deflection,
    expected_gap_deviation,
    expected_non_straightness,
    expected_total_gap_variance,
    foot_integral,
    nngp_kernel,
)
from implicitreg.measures.segment_samples import Estimate, SampledStraightness, sampled_straightness
from implicitreg.measures.segments import (
    SegmentProfile,
    Straightness,
    bridge_test,
    input_gradients,
    segment_profile,
    segment_profiles,
    straightness,
)
from implicitreg.measures.spectral import distance_from_rank, effective_rank, schatten_norm
from implicitreg.measures.tensors import CPRank, cp_rank, reconstruction_error
from implicitreg.nets.perceptron import rescale_nodes

__all__ = [
    "CPRank",
    "Capacities",
    "Estimate",
    "ExpectedSharpness",
    "GeometricComplexity",
    "HessianEigenvalues",
    "HessianTrace",
    "LayerNorms",
    "Measured",
    "RademacherComplexity",
    "Report",
    "SampledStraightness",
    "SegmentProfile",
    "Straightness",
    "angle",
    "augmented",
    "bridge_test",
    "capacities",
    "cp_rank",
    "distance_from_rank",
    "effective_rank",
    "expected_breakpoints",
    "expected_deflection",
    "expected_gap_deviation",
    "expected_non_straightness",
    "expected_sharpness",
    "expected_total_gap_variance",
    "foot_integral",
    "frobenius_product",
    "geometric_complexity",
    "group_norm",
    "hessian_eigenvalues",
    "hessian_trace",
    "input_gradients",
    "largest_correlation",
    "layer_norms",
    "linear_rademacher",
    "margin",
    "margins",
    "nngp_kernel",
    "norm_ball_bound",
    "pac_bayes_kl",
    "pac_bayes_kl_at",
    "path_norm",
    "rademacher_complexity",
    "reconstruction_error",
    "report",
    "rescale_nodes",
    "sampled_straightness",
    "schatten_norm",
    "segment_profile",
    "segment_profiles",
    "sharpness",
    "sign_patterns",
    "spectral_product",
    "straightness",
    "two_layer_rademacher",
    "width_exponent",
]
