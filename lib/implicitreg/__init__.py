"""Implicit regularization in deep learning, measured: networks, dynamics, measures, claims and verdicts."""

from implicitreg.citations import cite

__version__ = "0.1.0"

__all__ = ["__version__", "cite"]
