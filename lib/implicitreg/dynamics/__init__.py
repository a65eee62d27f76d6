"""How it learns: gradient flow, solved as a differential equation, and gradient descent."""

from implicitreg.dynamics.descent import Descent, gradient_descent
from implicitreg.dynamics.flow import Flow, balanced_flow

__all__ = ["Descent", "Flow", "balanced_flow", "gradient_descent"]
