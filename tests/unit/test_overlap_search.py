"""Where the recipes look for a turn: rounding is none, and a turn may lie far from 1."""

import math

import pytest
import torch

from implicitreg.overlaps import InfeasibleError, elasticity_trend, one_point_overlap, two_point_overlap

# At small z these lose all their digits: ratio and path integral have extrema of rounding there.
CANCELLING = {
    "1 - exp(-z)": lambda z: 1 - torch.exp(-z),
    "exp(z) - 1": lambda z: torch.exp(z) - 1,
    "sigmoid - 1/2": lambda z: torch.sigmoid(z) - 0.5,
    "log(1 + z)": lambda z: torch.log(1 + z),
    "log cosh": lambda z: torch.log(torch.cosh(z)),
    "tanh by exp": lambda z: (torch.exp(z) - torch.exp(-z)) / (torch.exp(z) + torch.exp(-z)),
    "z - tanh": lambda z: z - torch.tanh(z),
}
STEEP = {
    "tanh(100 z)": lambda z: torch.tanh(100 * z),
    "tanh(z / 100)": lambda z: torch.tanh(z / 100),
    "exp(-1 / z)": lambda z: torch.exp(-1 / z),
    "exp(z²)": lambda z: torch.exp(z * z),
    "edge": lambda z: torch.relu(z - 1),
}


@pytest.mark.parametrize("name", CANCELLING | STEEP)
def test_monotone_activations_are_refused_whatever_their_rounding(name):
    activation = (CANCELLING | STEEP)[name]
    for weights in ((2, 1), (0.3, 0.29)):
        with pytest.raises(
            ValueError, match=r"^activation: its elasticity .* meet at most once: no two-point"
        ) as caught:
            two_point_overlap(activation, *weights, 3)
        assert not isinstance(caught.value, InfeasibleError)
    for theta_0, w in (((1, 0.5), 1), ((1, 2), 0.7)):
        with pytest.raises(ValueError, match=r"^activation: its elasticity .* at most: no one-point") as caught:
            one_point_overlap(activation, theta_0, w, 1.0)
        assert not isinstance(caught.value, InfeasibleError)


@pytest.mark.parametrize("scale", [1e-2, 0.05, 20.0, 1e3, 1e5])
def test_a_turn_far_from_1(scale):
    """The recipe follows the scale of the activation: with σ(cz) inputs are c times smaller, points are the same."""
    plain = two_point_overlap(torch.sigmoid, 2, 1, 3.3)
    scaled = two_point_overlap(lambda z: torch.sigmoid(scale * z), 2, 1, 3.3, ratio=(plain.q[0] / plain.p[0]).item())
    assert scaled.s1[0] * scale == pytest.approx(plain.s1[0], rel=1e-9)
    assert scaled.s2[0] * scale == pytest.approx(plain.s2[0], rel=1e-9)
    torch.testing.assert_close(scaled.p, plain.p, rtol=1e-9, atol=0)


def test_the_reach_of_a_refusal_is_told():
    """It is true on the range that it names, and a turn beyond it is not denied."""
    with pytest.raises(ValueError, match=r"increasing for z = wx in \[5e-10, 1000\], so there") as caught:
        two_point_overlap(lambda z: torch.sigmoid(z / 1e4), 2, 1, 3.3)
    assert not isinstance(caught.value, InfeasibleError)


def test_no_value_to_search():
    for activation in (lambda z: -torch.tanh(z), lambda z: torch.exp(-z), lambda z: 1 + 0 * z):
        with pytest.raises(ValueError, match=r"^activation: must be positive and increasing where it is used"):
            one_point_overlap(activation, (1, 0.5), 1, 1.0)


def test_trend_counts_rises_from_any_earlier_point():
    """Many steps that are tiny each, and one that is rounding."""
    assert elasticity_trend(lambda z: torch.tanh(1e-4 * z)) == "decreasing"
    assert elasticity_trend(lambda z: z * (1 + 1e-14 * torch.sin(50 * z))) == "constant"
    assert elasticity_trend(lambda z: z ** (1 + 1e-5 * torch.cos(z)), 0.5, math.pi) == "non-monotone"
