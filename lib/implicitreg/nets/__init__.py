"""What learns: parametrisations of the function that is fitted."""

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
    "DeepLinear",
    "balanced_factors",
    "gaussian_factors",
    "gaussian_matrices",
    "identity_factors",
    "imbalance",
    "product",
]
