"""How it learns: gradient flow, solved as a differential equation, gradient descent, and GroupRMSprop."""

from implicitreg.dynamics.descent import Descent, gradient_descent
from implicitreg.dynamics.flow import Flow, balanced_flow
from implicitreg.dynamics.group_rmsprop import Training, group_rmsprop

__all__ = ["Descent", "Flow", "Training", "balanced_flow", "gradient_descent", "group_rmsprop"]
