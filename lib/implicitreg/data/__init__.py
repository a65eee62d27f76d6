"""What is learned: targets and which of their entries are observed."""

from implicitreg.data.completion import MatrixCompletion, two_by_two

__all__ = ["MatrixCompletion", "two_by_two"]
