"""What is learned: targets and which of their entries are observed."""

from implicitreg.data.completion import (
    MatrixCompletion,
    TensorCompletion,
    larger_two_by_two,
    nested_observations,
    observed_entries,
    two_by_two,
)
from implicitreg.data.low_rank import gaussian_tensors, low_rank_tensors

__all__ = [
    "MatrixCompletion",
    "TensorCompletion",
    "gaussian_tensors",
    "larger_two_by_two",
    "low_rank_tensors",
    "nested_observations",
    "observed_entries",
    "two_by_two",
]
