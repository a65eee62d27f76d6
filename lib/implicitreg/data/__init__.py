"""What is learned: targets and which of their entries are observed; images, labels and sequences."""

from implicitreg.data.completion import (
    MatrixCompletion,
    TensorCompletion,
    larger_two_by_two,
    nested_observations,
    observed_entries,
    two_by_two,
)
from implicitreg.data.files import DataError
from implicitreg.data.images import LabelledImages, Split, cifar10, cifar10_records, digits, downsample, mnist, split
from implicitreg.data.labels import noisy_labels, random_labels, teacher_labels
from implicitreg.data.low_rank import gaussian_tensors, low_rank_tensors
from implicitreg.data.sequences import addition_problem

__all__ = [
    "DataError",
    "LabelledImages",
    "MatrixCompletion",
    "Split",
    "TensorCompletion",
    "addition_problem",
    "cifar10",
    "cifar10_records",
    "digits",
    "downsample",
    "gaussian_tensors",
    "larger_two_by_two",
    "low_rank_tensors",
    "mnist",
    "nested_observations",
    "noisy_labels",
    "observed_entries",
    "random_labels",
    "split",
    "teacher_labels",
    "two_by_two",
]
