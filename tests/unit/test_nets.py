"""Deep factorizations: products, balance, initialisation; and the completion problem."""

import pytest
import torch

from implicitreg.data import MatrixCompletion, larger_two_by_two, two_by_two
from implicitreg.nets import (
    DeepLinear,
    balanced_factors,
    gaussian_factors,
    gaussian_matrices,
    identity_factors,
    imbalance,
    product,
)
from implicitreg.seeding import ensemble, generators


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_product_is_left_to_right():
    a, b, c = (torch.randn(2, m, n, dtype=torch.float64, generator=generator(m)) for m, n in ((3, 2), (2, 4), (4, 5)))
    torch.testing.assert_close(product([a, b, c]), torch.einsum("zij,zjk,zkl->zil", a, b, c))
    with pytest.raises(ValueError, match="do not meet"):
        product([a, c])
    for bad in ([], torch.eye(2), [torch.ones(2), torch.ones(2, 2)]):
        for function in (product, imbalance):
            with pytest.raises(ValueError, match=r"^factors: "):
                function(bad)


@pytest.mark.parametrize("depth", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(2, 2), (3, 5), (5, 3)])
def test_balanced_factors(depth, shape):
    w = torch.randn(4, *shape, dtype=torch.float64, generator=generator())
    factors = balanced_factors(w, depth)
    assert len(factors) == depth
    torch.testing.assert_close(product(factors), w, rtol=1e-12, atol=1e-12)
    assert imbalance(factors).max() < 1e-12
    # The check can fail: a factor doubled and its neighbour halved have the same product, out of balance.
    if depth > 1:
        skewed = [2 * factors[0], factors[1] / 2, *factors[2:]]
        torch.testing.assert_close(product(skewed), w, rtol=1e-12, atol=1e-12)
        assert imbalance(skewed).min() > 0.1


def test_identity_factors():
    factors = identity_factors(0.3, 4, dim=3)
    torch.testing.assert_close(product(factors), 0.3 * torch.eye(3, dtype=torch.float64))
    assert imbalance(factors) == 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_gaussian_factors_have_the_stated_scale(depth):
    std = 0.5
    w = product(gaussian_factors(200_000, depth, std, generator()))
    assert w.std().item() == pytest.approx(std**depth * 2 ** ((depth - 1) / 2), rel=0.02)


@pytest.mark.parametrize("sign", [1, -1])
def test_gaussian_matrices_keep_the_sign_asked_for(sign):
    w = gaussian_matrices(500, 1e-3, generator(), shape=(3, 3), determinant_sign=sign)
    assert w.shape == (500, 3, 3)
    assert (torch.linalg.det(w).sign() == sign).all()
    assert w.std().item() == pytest.approx(1e-3, rel=0.1)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("depth", [1, 3])
def test_gaussian_factors_keep_the_sign_asked_for(depth, sign):
    factors = gaussian_factors(500, depth, 0.3, generator(), determinant_sign=sign)
    free = gaussian_factors(500, depth, 0.3, generator())
    assert (torch.linalg.det(product(factors)).sign() == sign).all()
    flipped = (factors[0] != free[0]).any(-1).any(-1).double().mean()
    assert 0.4 < flipped < 0.6
    assert all(torch.equal(a.abs(), b.abs()) for a, b in zip(factors, free, strict=True))


def test_an_ensemble_draws_one_member_from_each_generator():
    drawn = ensemble(lambda g: gaussian_matrices(1, 1.0, g, shape=(2, 3))[0], 3, 4)
    assert drawn.shape == (4, 2, 3)
    expected = [gaussian_matrices(1, 1.0, g, shape=(2, 3))[0] for g in generators(3, 4)]
    assert torch.equal(drawn, torch.stack(expected))


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_unobserved_entry_may_stand_anywhere(place):
    problem = two_by_two(-2.0, 0.5, 0.1, unobserved=place)
    assert (~problem.observed).nonzero().tolist() == [list(place)]
    i, j = place
    assert problem.target[1 - i, 1 - j] == 0.1
    assert (problem.target[i, 1 - j], problem.target[1 - i, j]) == (-2.0, 0.5)
    solution = problem.solutions(torch.tensor(7.0, dtype=torch.float64))
    assert torch.linalg.det(solution).item() == pytest.approx((0.7 + 1.0) * (1 if i == j else -1))


@pytest.mark.parametrize("shape", [(2, 2), (5, 5), (5, 10), (4, 2)])
def test_larger_problems_hold_the_small_one(shape):
    problem = larger_two_by_two(*shape)
    assert problem.target.shape == shape
    assert (~problem.observed).nonzero().tolist() == [[0, 0]]
    assert torch.equal(problem.target[:2, :2], two_by_two().target)
    assert problem.target.sum() == min(shape)
    if shape[0] == shape[1]:
        assert torch.linalg.det(problem.solutions(torch.tensor(3.0, dtype=torch.float64))).item() == pytest.approx(-1)


def test_a_module_trains_by_autograd():
    net = DeepLinear(gaussian_factors(3, 2, 1.0, generator()))
    two_by_two().loss(net()).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert len(list(net.parameters())) == 2


def test_seeds_share_no_member_and_members_do_not_depend_on_their_number():
    def first(seed, n):
        return [torch.rand(2, generator=g).tolist() for g in generators(seed, n)]

    assert first(0, 3) == first(0, 5)[:3]
    assert not {tuple(x) for x in first(0, 50)} & {tuple(x) for x in first(1, 50)}


def test_completion_loss_and_gradient_agree_with_autograd():
    problem = MatrixCompletion(
        torch.randn(3, 4, dtype=torch.float64, generator=generator()),
        torch.rand(3, 4, generator=generator()) < 0.5,
    )
    w = torch.randn(5, 3, 4, dtype=torch.float64, generator=generator(1)).requires_grad_()
    loss = problem.loss(w)
    brute = 0.5 * sum((w[:, i, j] - problem.target[i, j]) ** 2 for i, j in problem.observed.nonzero().tolist())
    torch.testing.assert_close(loss, brute)
    loss.sum().backward()
    torch.testing.assert_close(problem.gradient(w.detach()), w.grad)
    assert (problem.gradient(w)[:, ~problem.observed] == 0).all()


def test_solutions_fit_and_keep_the_free_entry():
    problem = two_by_two(-2.0, 0.5, 0.1)
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    w = problem.solutions(x)
    assert (problem.loss(w) == 0).all()
    assert torch.equal(w[:, 0, 0], x)
    for bad, error in ((torch.eye(2, dtype=torch.int64), TypeError), (torch.zeros(2), ValueError)):
        for function in (problem.loss, problem.gradient):
            with pytest.raises(error, match=r"^w: "):
                function(bad)
    with pytest.raises(TypeError, match=r"^x: "):
        problem.solutions(torch.tensor([1, 2]))
    with pytest.raises(TypeError, match=r"^target: "):
        MatrixCompletion([[1.0]], torch.ones(1, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: balanced_factors(torch.ones(2), 2), "w"),
        (lambda: balanced_factors(torch.eye(2), 0), "depth"),
        (lambda: identity_factors(0.0, 2), "alpha"),
        (lambda: gaussian_factors(0, 2, 1.0, generator()), "n"),
        (lambda: gaussian_factors(1, 2, -1.0, generator()), "std"),
        (lambda: gaussian_matrices(1, 1.0, generator(), determinant_sign=0), "determinant_sign"),
        (lambda: gaussian_matrices(1, 1.0, generator(), shape=(2, 3), determinant_sign=1), "determinant_sign"),
        (lambda: gaussian_matrices(1, 1.0, generator(), shape=(2, 2, 2)), "shape"),
        (lambda: gaussian_factors(1, 2, 1.0, generator(), determinant_sign=2), "determinant_sign"),
        (lambda: gaussian_factors(1, 0, 1.0, generator()), "depth"),
        (lambda: two_by_two(unobserved=(2, 0)), "unobserved"),
        (lambda: two_by_two(float("nan")), "z, z_prime, epsilon"),
        (lambda: larger_two_by_two(1, 5), "rows"),
        (lambda: larger_two_by_two(5, 1), "columns"),
        (lambda: generators(-1, 2), "seed"),
        (lambda: generators(0, 0), "n"),
        (lambda: MatrixCompletion(torch.eye(2), torch.zeros(2, 2, dtype=torch.bool)), "observed"),
        (lambda: MatrixCompletion(torch.eye(2), torch.ones(2, 3, dtype=torch.bool)), "observed"),
        (lambda: MatrixCompletion(torch.full((2, 2), float("nan")), torch.ones(2, 2, dtype=torch.bool)), "target"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        call()
