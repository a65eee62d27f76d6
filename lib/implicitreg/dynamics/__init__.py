"""How it learns: gradient flow, gradient descent, GroupRMSprop, and the minibatch methods of deep learning."""

from implicitreg.dynamics.data_paths import data_path_scales, path_factors
from implicitreg.dynamics.ddp_sgd import DDPSGD
from implicitreg.dynamics.descent import Descent, gradient_descent
from implicitreg.dynamics.ensemble import Trained, train_networks
from implicitreg.dynamics.flow import Flow, balanced_flow
from implicitreg.dynamics.gradient_flow import GradientFlow, gradient_flow
from implicitreg.dynamics.group_rmsprop import Training, group_rmsprop
from implicitreg.dynamics.losses import cross_entropy, squared_loss, truncated_cross_entropy, truncated_exponential
from implicitreg.dynamics.path_sgd import PathSGD
from implicitreg.dynamics.recurrent import TrainedRecurrent, train_recurrent

__all__ = [
    "DDPSGD",
    "Descent",
    "Flow",
    "GradientFlow",
    "PathSGD",
    "Trained",
    "TrainedRecurrent",
    "Training",
    "balanced_flow",
    "cross_entropy",
    "data_path_scales",
    "gradient_descent",
    "gradient_flow",
    "group_rmsprop",
    "path_factors",
    "squared_loss",
    "train_networks",
    "train_recurrent",
    "truncated_cross_entropy",
    "truncated_exponential",
]
