"""Tensor completion: the model against einsum, its training against autograd, the rank search against tensorly."""

import sys
import warnings

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import parafac

from implicitreg.data import (
    TensorCompletion,
    gaussian_tensors,
    low_rank_tensors,
    nested_observations,
    observed_entries,
)
from implicitreg.dynamics import group_rmsprop
from implicitreg.measures import cp_rank, reconstruction_error
from implicitreg.nets import CPFactorization, component_norms, cp_tensor, gaussian_cp_factors, khatri_rao

training_module = sys.modules["implicitreg.dynamics.group_rmsprop"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def einsum(factors):
    """Return the CP tensor term by term, as its definition reads."""
    modes = "abcde"[: len(factors)]
    return torch.einsum(",".join(f"...{k}r" for k in modes) + f"->...{modes}", *factors)


# The model


@pytest.mark.parametrize("dims", [(2, 3), (2, 3, 4), (3, 2, 2, 4), (2, 2, 3, 2, 2)])
def test_cp_tensor_is_the_sum_of_outer_products(dims):
    factors = gaussian_cp_factors(6, dims, 5, 1.0, generator())
    w = cp_tensor(factors)
    assert w.shape == (6, *dims)
    torch.testing.assert_close(w, einsum(factors), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(CPFactorization([f[0] for f in factors])(), w[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cp_tensor([f.flip(-1) for f in factors]), w, rtol=1e-12, atol=1e-12)


def test_khatri_rao_agrees_with_scipy():
    from scipy.linalg import khatri_rao as theirs

    a, b, c = (torch.randn(d, 4, dtype=torch.float64, generator=generator(d)) for d in (2, 3, 5))
    np.testing.assert_allclose(khatri_rao([a, b, c]), theirs(theirs(a, b), c), rtol=1e-13)


def test_component_norms_are_those_of_the_terms():
    factors = gaussian_cp_factors(2, (3, 4, 2), 5, 1.0, generator())
    terms = torch.stack([einsum([f[..., [r]] for f in factors]) for r in range(5)], -1)
    torch.testing.assert_close(component_norms(factors), terms.flatten(1, -2).norm(dim=1))


def test_a_model_of_full_rank_can_write_every_tensor():
    assert [f.shape[-1] for f in gaussian_cp_factors(1, (8, 8, 8, 8), None, 1.0, generator())] == [512] * 4
    target = gaussian_tensors(1, (2, 3, 2), generator())[0]
    identity = torch.eye(2, dtype=torch.float64)
    columns = [
        torch.stack(vectors, 1)
        for vectors in zip(
            *((identity[i], target[i, :, k], identity[k]) for i in range(2) for k in range(2)), strict=True
        )
    ]
    torch.testing.assert_close(cp_tensor(columns), target)


# Targets and observations


@pytest.mark.parametrize(("dims", "rank"), [((8, 8, 8), 1), ((5, 6, 7, 4), 3), ((9, 7), 2)])
def test_low_rank_targets(dims, rank):
    w = low_rank_tensors(4, dims, rank, generator(), norm=2.0)
    torch.testing.assert_close(w.flatten(1).norm(dim=1), torch.full((4,), 2.0, dtype=torch.float64))
    for mode in range(1, len(dims) + 1):
        assert (torch.linalg.matrix_rank(w.movedim(mode, 1).flatten(2)) == rank).all()
    assert not torch.equal(w[0], w[1])


def test_gaussian_targets_have_no_low_rank():
    w = gaussian_tensors(3, (6, 6, 6), generator())
    torch.testing.assert_close(w.flatten(1).norm(dim=1), torch.ones(3, dtype=torch.float64))
    assert (torch.linalg.matrix_rank(w.flatten(2)) == 6).all()


def test_observations_are_nested_and_seeded():
    counts = [7, 60, 3, 59]
    masks = nested_observations((3, 4, 5), counts, generator())
    assert masks.flatten(1).sum(-1).tolist() == counts
    order = torch.tensor(counts).argsort()
    assert (masks[order][:-1] <= masks[order][1:]).all()
    assert torch.equal(masks, nested_observations((3, 4, 5), counts, generator()))
    assert not torch.equal(masks, nested_observations((3, 4, 5), counts, generator(1)))
    # The same entries whichever other sizes are asked for.
    assert torch.equal(masks[:1], nested_observations((3, 4, 5), [7], generator()))


def test_observed_entries_are_those_listed():
    mask = observed_entries((2, 3, 4), [(0, 0, 0), (1, 2, 3), (0, 2, 1)])
    assert mask.nonzero().tolist() == [[0, 0, 0], [0, 2, 1], [1, 2, 3]]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([(0, 0), (2, 0)], r"inside dimensions \(2, 3\).*got \(2, 0\)"),
        ([(0, -1)], "inside"),
        ([(0, 1), (1, 1), (0, 1)], r"once only, got \(0, 1\) 2 times"),
        ([(0, 1, 0)], "2 integers"),
        ([], "at least one position"),
        ([(0.0, 1.0)], "integers"),
        ("01", "integers"),
    ],
)
def test_bad_entries_are_named(entries, words):
    with pytest.raises(ValueError, match=rf"^entries: .*{words}"):
        observed_entries((2, 3), entries)


def test_the_loss_is_the_mean_over_the_observed():
    target = gaussian_tensors(3, (3, 4, 2), generator())
    observed = nested_observations((3, 4, 2), [5, 17], generator())
    problem = TensorCompletion(target[:, None], observed, order=3)
    assert (problem.dims, problem.batch) == ((3, 4, 2), (3, 2))
    w = torch.randn(3, 2, 3, 4, 2, dtype=torch.float64, generator=generator(2), requires_grad=True)
    loss = problem.loss(w)
    for i in range(3):
        for j in range(2):
            expected = (w[i, j] - target[i])[observed[j]].square().mean()
            torch.testing.assert_close(loss[i, j], expected)
    (slope,) = torch.autograd.grad(loss.sum(), w)
    torch.testing.assert_close(problem.gradient(w), slope)
    # What is not observed is not kept, so it cannot be learned from.
    assert (problem.target.masked_select(~problem.observed) == 0).all()


def test_nan_is_refused_where_observed_and_only_there():
    target = torch.ones(2, 2, 2)
    target[0, 0, 0] = float("nan")
    one = observed_entries((2, 2, 2), [(1, 1, 1)])
    TensorCompletion(target, one)
    with pytest.raises(ValueError, match=r"^target: must be finite where observed"):
        TensorCompletion(target, ~one)


@pytest.mark.parametrize(
    ("target", "observed", "order", "name"),
    [
        (torch.ones(2, 2, 2), torch.zeros(2, 2, 2, dtype=torch.bool), None, "observed"),
        (torch.ones(2, 2, 2), torch.ones(2, 2, 3, dtype=torch.bool), None, "observed"),
        (torch.ones(4, 2, 2), torch.ones(3, 2, 2, dtype=torch.bool), 2, "observed"),
        (torch.ones(2, 2, 2), torch.ones(2, 2, 2), None, "observed"),
        (torch.ones(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool), 1, "order"),
        (torch.ones(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool), 4, "target"),
        (torch.ones(2), torch.ones(2, dtype=torch.bool), None, "target"),
        (torch.ones(2, 2).long(), torch.ones(2, 2, dtype=torch.bool), None, "target"),
    ],
)
def test_bad_problems_are_named(target, observed, order, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        TensorCompletion(target, observed, order)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: low_rank_tensors(1, (2, 2), 0, generator()), "rank"),
        (lambda: low_rank_tensors(1, (2,), 1, generator()), "dims"),
        (lambda: low_rank_tensors(1, (2, 0), 1, generator()), "dims"),
        (lambda: low_rank_tensors(0, (2, 2), 1, generator()), "n"),
        (lambda: low_rank_tensors(1, (2, 2), 1, generator(), norm=0.0), "norm"),
        (lambda: low_rank_tensors(1, (1,) * 25, 1, generator()), "dims"),
        (lambda: gaussian_tensors(1, (2, 2), generator(), norm=-1.0), "norm"),
        (lambda: nested_observations((2, 2), [5], generator()), "counts"),
        (lambda: nested_observations((2, 2), [0], generator()), "counts"),
        (lambda: nested_observations((2, 2), [], generator()), "counts"),
        (lambda: nested_observations((2, 2), 3, generator()), "counts"),
        (lambda: nested_observations((2, 2), [2, 2], generator()), "counts"),
        (lambda: gaussian_cp_factors(1, (2, 2), 0, 1.0, generator()), "rank"),
        (lambda: gaussian_cp_factors(1, (2, 2), 1, 0.0, generator()), "std"),
        (lambda: gaussian_cp_factors(1, (2, 2), 1, -1.0, generator()), "std"),
        (lambda: gaussian_cp_factors(1, "22", 1, 1.0, generator()), "dims"),
        (lambda: cp_tensor([torch.ones(2, 2)]), "factors"),
        (lambda: cp_tensor(torch.ones(2, 2, 2)), "factors"),
        (lambda: cp_tensor([torch.ones(2, 2), torch.ones(2, 3)]), "factors"),
        (lambda: cp_tensor(None), "factors"),
        (lambda: cp_tensor([torch.ones(2), torch.ones(2)]), "factors"),
        (lambda: nested_observations((2, 2), None, generator()), "counts"),
        (lambda: reconstruction_error(torch.ones(3, 2, 2), torch.ones(4, 2, 2), order=2), "w"),
        (lambda: TensorCompletion(torch.ones(3, 2, 2), torch.ones(2, 2) > 0, 2).loss(torch.ones(5, 2, 2)), "w"),
        (lambda: reconstruction_error(torch.ones(2, 2), torch.zeros(2, 2)), "target"),
        (lambda: reconstruction_error(torch.ones(2, 3), torch.ones(2, 2)), "w"),
        (lambda: cp_rank(torch.ones(2)), "tensor"),
        (lambda: cp_rank(torch.full((2, 2), float("nan"))), "tensor"),
        (lambda: cp_rank(torch.ones(2, 2), tol=0.0), "tol"),
        (lambda: cp_rank(torch.ones(2, 2), max_rank=0), "max_rank"),
        (lambda: cp_rank(torch.ones(2, 2), starts=0), "starts"),
        (lambda: cp_rank(torch.ones(2, 2), sweeps=0), "sweeps"),
        (lambda: cp_rank(torch.ones(2, 2), seed=-1), "seed"),
        (lambda: cp_rank(torch.ones(2, 2), order=3), "tensor"),
    ],
)
def test_bad_arguments_are_named(call, name):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        call()


# Training


def plain(factors, problem, steps, lr=0.01, beta=0.99, eps=1e-6):
    """One member, autograd, the formula of the optimiser as it stands in the docstring."""
    net, mean = CPFactorization(factors), 0.0
    for t in range(1, steps + 1):
        gradients = torch.autograd.grad(problem.loss(net()), list(net.parameters()))
        mean = beta * mean + (1 - beta) * sum(g.square().sum() for g in gradients)
        rate = lr / ((mean / (1 - beta**t)).sqrt() + eps)
        with torch.no_grad():
            for parameter, g in zip(net.parameters(), gradients, strict=True):
                parameter -= rate * g
    return [p.detach() for p in net.parameters()]


def check(train, dims=(3, 4, 2), **options):
    """Hold an ensemble of two targets, each seen through two sets, against training one member after the other."""
    target = low_rank_tensors(2, dims, 2, generator())
    observed = nested_observations(dims, [9, 20], generator())
    factors = [f[:, None].expand(2, 2, -1, -1) for f in gaussian_cp_factors(2, dims, 5, 0.3, generator())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run = train(factors, TensorCompletion(target[:, None], observed, order=len(dims)), max_steps=40, **options)
    assert run.step.tolist() == [[40, 40], [40, 40]]
    for i in range(2):
        for j in range(2):
            problem = TensorCompletion(target[i], observed[j])
            expected = plain([f[i, j] for f in factors], problem, 40, **options)
            for mine, theirs in zip(run.factors, expected, strict=True):
                torch.testing.assert_close(mine[i, j], theirs, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(run.loss[i, j], problem.loss(cp_tensor(expected)), rtol=1e-8, atol=0)


@pytest.mark.parametrize("dims", [(3, 9), (3, 4, 2), (3, 2, 2, 4), (2, 3, 2, 2, 2)])
def test_agrees_with_autograd(dims):
    check(group_rmsprop, dims)


def test_all_its_arguments_count():
    check(group_rmsprop, lr=0.03, beta=0.5, eps=0.1)
    for change in ({"lr": 0.011}, {"beta": 0.98}, {"eps": 1e-2}):
        with pytest.raises(AssertionError):
            check(lambda *a, change=change, **k: group_rmsprop(*a, **{**k, **change}))


@pytest.mark.parametrize(
    ("method", "mutant"),
    [
        ("backward", lambda right: lambda self: right(self) * 1.01),  # not the gradient
        ("backward", lambda right: lambda self: right(self).index_fill(1, torch.tensor([0]), 0.0)),  # a row left out
        ("forward", lambda right: lambda self: (right(self), self.residual.mul_(0.99))),  # a wrong residual
        ("loss", lambda right: lambda self: 1.01 * right(self)),
    ],
)
def test_mutants_of_the_program_are_caught(monkeypatch, method, mutant):
    program = training_module._Program
    monkeypatch.setattr(program, method, mutant(getattr(program, method)))
    with pytest.raises(AssertionError):
        check(group_rmsprop)


def recover(n=8, std=1e-3, dims=(6, 6, 6), count=120, rank=1, **options):
    target = low_rank_tensors(n, dims, rank, generator(1))
    observed = torch.cat([nested_observations(dims, [count], generator(i)) for i in range(n)])
    start = gaussian_cp_factors(n, dims, None, std, generator(2))
    run = group_rmsprop(start, TensorCompletion(target, observed, order=len(dims)), **options)
    return target, observed, run


def test_a_small_start_recovers_what_a_large_one_does_not():
    errors = {}
    for std in (1e-3, 0.1):
        target, _, run = recover(std=std)
        assert run.converged.all()
        assert (run.loss < 1e-6).all()
        errors[std] = reconstruction_error(cp_tensor(run.factors), target, order=3).median()
    assert errors[1e-3] < 1e-3
    assert errors[0.1] > 0.1


def test_it_stops_after_three_checks_in_a_row():
    _, _, run = recover()
    assert (run.step % 100 == 0).all()
    for patience in (1, 2):
        _, _, eager = recover(patience=patience)
        assert (eager.step == run.step - 100 * (3 - patience)).all()
    _, _, often = recover(check_every=10, patience=1)
    assert (often.step <= run.step - 200).all()
    assert (often.step > run.step - 300).all()


def test_a_member_trains_alike_alone_and_in_an_ensemble():
    target, observed, run = recover(n=3)
    start = gaussian_cp_factors(3, (6, 6, 6), None, 1e-3, generator(2))
    alone = group_rmsprop([f[1] for f in start], TensorCompletion(target[1], observed[1]))
    assert alone.step == run.step[1]
    torch.testing.assert_close(cp_tensor(alone.factors), cp_tensor(run.factors)[1], rtol=1e-6, atol=1e-9)


@pytest.mark.filterwarnings("ignore:.*trainings")
def test_nothing_is_changed_and_the_dtype_is_kept():
    start = [f.float() for f in gaussian_cp_factors(2, (4, 4, 4), 3, 0.1, generator())]
    before = [f.clone() for f in start]
    problem = TensorCompletion(low_rank_tensors(1, (4, 4, 4), 1, generator())[0], torch.ones(4, 4, 4, dtype=torch.bool))
    run = group_rmsprop(start, problem, max_steps=500)
    assert all(torch.equal(a, b) for a, b in zip(start, before, strict=True))
    assert all(f.dtype == torch.float32 for f in run.factors)


def test_trainings_that_fail_say_so():
    with pytest.warns(RuntimeWarning, match="8 of 8 trainings"):
        _, _, short = recover(max_steps=50)
    assert not short.converged.any()
    assert (short.step == 50).all()
    with pytest.warns(RuntimeWarning, match="8 of 8 trainings"):
        _, _, burst = recover(lr=1e200)
    assert not burst.converged.any()


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"lr": 0.0}, "lr"),
        ({"beta": 1.0}, "beta"),
        ({"beta": -0.1}, "beta"),
        ({"eps": 0.0}, "eps"),
        ({"tol": -1.0}, "tol"),
        ({"patience": 0}, "patience"),
        ({"check_every": 0}, "check_every"),
        ({"max_steps": -1}, "max_steps"),
        ({"factors": [torch.ones(2, 2)]}, "factors"),
        ({"factors": [torch.full((2, 3), float("nan"))] * 3}, "factors"),
        ({"factors": [torch.ones(0, 2, 3)] * 3}, "factors"),
        ({"factors": [torch.ones(3, 2)] * 3}, "factors"),
        ({"factors": [torch.ones(2, 2, 3)] * 3, "problem": (3,)}, "problem"),
        ({"problem": None}, "problem"),
    ],
)
def test_bad_training_is_named(change, name):
    shape = change.get("problem", ())
    target = torch.ones(*(shape or ()), 2, 2, 2)
    problem = None if shape is None else TensorCompletion(target, torch.ones(2, 2, 2, dtype=torch.bool), order=3)
    arguments = {"factors": [torch.ones(2, 3)] * 3, **change, "problem": problem}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        group_rmsprop(**arguments)


# The rank


def best(tensor, r):
    """Return tensorly's mean squared error at rank ``r``, the best of five starts."""
    array = tensorly.tensor(tensor.numpy())
    errors = []
    for state in range(5):
        cp = parafac(array, r, n_iter_max=500, tol=1e-12, init="random", random_state=state)
        errors.append(((tensorly.cp_to_tensor(cp) - array) ** 2).mean())
    return min(errors)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dims", [(5, 5, 5), (4, 3, 5, 3)])
def test_cp_rank_agrees_with_tensorly(dims):
    tol = 1e-6
    tensors = torch.cat([low_rank_tensors(2, dims, rank, generator(rank)) for rank in (1, 2, 3)])
    sparse = tensors[:2] * (torch.rand(2, *dims, generator=generator(9)) < 0.4)
    tensors = torch.cat([tensors, sparse])
    result = cp_rank(tensors, tol, order=len(dims))
    assert result.rank[:6].tolist() == [1, 1, 2, 2, 3, 3]
    assert (result.lower <= result.rank).all()
    assert (result.mse < tol).all()
    # On the last two, of high rank, more starts and sweeps than ours may still save one term.
    for tensor, rank, less in zip(tensors, result.rank.tolist(), [1] * 6 + [2] * 2, strict=True):
        assert best(tensor, rank) < tol * 1.5
        assert rank <= less or best(tensor, rank - less) > tol


def test_the_rank_of_a_matrix_is_its_rank():
    w = low_rank_tensors(3, (7, 5), 3, generator())
    result = cp_rank(w, 1e-12, order=2)
    assert result.rank.tolist() == result.lower.tolist() == [3, 3, 3]
    assert result.monotone.all()


def test_known_ranks():
    e1, e2 = torch.eye(2, dtype=torch.float64)
    three = sum(torch.einsum("i,j,k->ijk", *v) for v in ((e1, e1, e2), (e1, e2, e1), (e2, e1, e1)))
    # Of rank 3 and border rank 2: rank two comes as close as one likes, so the tolerance decides.
    coarse = cp_rank(three, 1e-3)
    assert (coarse.rank, coarse.lower) == (2, 2)
    zero = cp_rank(torch.zeros(2, 2, 2))
    assert (zero.rank, zero.mse, zero.found.item()) == (0, 0.0, True)
    # All of it within the tolerance, yet not zero.
    assert cp_rank(torch.full((2, 2, 2), 1e-6)).rank == 1
    unit = torch.zeros(3, 3, 3, dtype=torch.float64)
    for i in range(3):
        unit[i, i, i] = 1
    assert cp_rank(unit).rank == 3


def test_the_lower_bound_holds():
    """Tensors of known rank plus noise at the tolerance: never above the rank they were made with."""
    w = torch.cat([low_rank_tensors(5, (4, 5, 6), rank, generator(rank)) for rank in (1, 2, 4)])
    noise = 0.9e-3 * torch.randn(w.shape, generator=generator(), dtype=torch.float64)
    bound = cp_rank(w + noise, 1e-6, order=3, max_rank=12, starts=5).lower
    assert (bound <= torch.tensor([1, 2, 4]).repeat_interleave(5)).all()


def test_scales_and_tolerances_at_the_ends_of_floating_point():
    one = low_rank_tensors(1, (8, 8, 8), 1, generator())[0]
    for scale in (1e200, 1e-150):
        result = cp_rank(scale * one, 1e-6 * scale**2 if scale < 1 else 1e300)
        assert (result.rank, result.lower, result.found.item()) == (1, 1, True)


def test_a_bound_above_the_search_says_so():
    with pytest.warns(RuntimeWarning, match="no rank up to 2"):
        result = cp_rank(torch.eye(5), 1e-9, max_rank=2)
    assert (result.rank, result.lower, result.found.item()) == (5, 5, False)
    assert result.mse == float("inf")


@pytest.mark.filterwarnings("ignore:.*no rank")
def test_rounding_proves_nothing():
    assert cp_rank(low_rank_tensors(1, (8, 8, 8), 1, generator())[0], 1e-36, max_rank=1).lower == 1


def test_a_lost_member_does_not_spoil_the_others():
    _, _, run = recover(n=3)
    factors = [f.clone() for f in run.factors]
    factors[0][1] = float("nan")
    w = cp_tensor(factors)
    assert w[1].isnan().all()
    assert w[[0, 2]].isfinite().all()
    problem = TensorCompletion(torch.ones(2, 2), observed_entries((2, 2), [(0, 0)]))
    assert problem.loss(torch.tensor([[2.0, float("nan")], [0.0, 0.0]])) == 1.0


def test_checks_off_the_grid_do_not_count():
    with pytest.warns(RuntimeWarning, match="8 of 8 trainings"):
        _, _, run = recover(max_steps=601, check_every=300, patience=4)
    assert not run.converged.any()


@pytest.mark.parametrize("draw", [low_rank_tensors, gaussian_tensors])
def test_draws_need_a_generator(draw):
    arguments = (1, (2, 2), 1) if draw is low_rank_tensors else (1, (2, 2))
    with pytest.raises(TypeError, match=r"^generator: "):
        draw(*arguments, None)


def test_a_search_without_end_says_so():
    w = gaussian_tensors(2, (4, 4, 4), generator())
    with pytest.warns(RuntimeWarning, match="2 of 2 tensors have no rank up to 3"):
        result = cp_rank(w, 1e-8, order=3, max_rank=3)
    assert result.rank.tolist() == [4, 4]
    assert not result.found.any()


def test_a_search_that_is_not_monotone_says_so(monkeypatch):
    """Every start of rank 3 is spoiled: what rank 2 fits, rank 3 does not."""
    module = sys.modules["implicitreg.measures.tensors"]
    right = module._least_squares

    def spoiled(tensor, start, sweeps, tol):
        return right(tensor, start, sweeps, tol) + (start[0].shape[-1] == 3)

    monkeypatch.setattr(module, "_least_squares", spoiled)
    w = low_rank_tensors(2, (4, 4, 4), 2, generator())
    with pytest.warns(RuntimeWarning, match="not monotone for 2"):
        result = cp_rank(w, order=3)
    assert result.rank.tolist() == [2, 2]
    assert not result.monotone.any()


def test_the_rank_does_not_depend_on_the_company():
    w = torch.cat([low_rank_tensors(1, (5, 5, 5), rank, generator(rank)) for rank in (1, 4, 2)])
    together = cp_rank(w, order=3)
    for i in range(3):
        assert cp_rank(w[i]).rank == together.rank[i]
    assert cp_rank(1e3 * w, 1.0, order=3).rank.tolist() == together.rank.tolist()
    assert cp_rank(w.movedim(1, 3), order=3).rank.tolist() == together.rank.tolist()


def test_reconstruction_error():
    target = gaussian_tensors(2, (3, 3, 3), generator())
    w = torch.randn(4, 2, 3, 3, 3, dtype=torch.float64, generator=generator(1))
    expected = (w - target).flatten(2).norm(dim=-1) / target.flatten(1).norm(dim=-1)
    torch.testing.assert_close(reconstruction_error(w, target, order=3), expected)
