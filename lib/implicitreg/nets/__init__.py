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

__all__ = [
    "CPFactorization",
    "DeepLinear",
    "balanced_factors",
    "component_norms",
    "cp_factors",
    "cp_tensor",
    "gaussian_cp_factors",
    "gaussian_factors",
    "gaussian_matrices",
    "identity_factors",
    "imbalance",
    "khatri_rao",
    "product",
]
