"""Implicit regularization in deep learning, measured: networks, dynamics, measures, claims and verdicts."""

__version__ = "0.1.0"
