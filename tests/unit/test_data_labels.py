"""Labels that are not those of the data, and the addition problem."""

import math

import pytest
import torch
from torch import nn

from implicitreg.data import addition_problem, noisy_labels, random_labels, teacher_labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_random_labels_are_uniform_and_independent_of_each_other():
    labels = random_labels(90_000, 3, generator())
    assert labels.dtype == torch.int64
    # Standard deviation of a count of pairs: sqrt(45,000 * 1/9 * 8/9) = 67.
    pairs = (3 * labels[::2] + labels[1::2]).bincount(minlength=9)
    assert (pairs - 5000).abs().max() < 5 * 67
    assert torch.equal(labels, random_labels(90_000, 3, generator()))
    assert not torch.equal(labels, random_labels(90_000, 3, generator(1)))


@pytest.mark.parametrize(("n", "share", "drawn"), [(500, 0.05, 25), (100, 0.29, 29), (7, 0.5, 4), (9, 0, 0), (9, 1, 9)])
def test_exactly_that_many_labels_are_drawn_anew(n, share, drawn):
    # Of very many classes, a label that is drawn anew is another one.
    labels = torch.zeros(n, dtype=torch.int64)
    noisy = noisy_labels(labels, 2**40, share, generator())
    assert (noisy != labels).sum() == drawn
    assert not labels.any()


def test_noise_is_uniform_over_places_and_classes():
    labels = torch.full((20_000,), 2)
    noisy = noisy_labels(labels, 4, 0.4, generator())
    counts = noisy.bincount(minlength=4)
    # 8,000 drawn, 2,000 of each class; standard deviation sqrt(8,000 * 3/16) = 39.
    assert (counts[[0, 1, 3]] - 2000).abs().max() < 5 * 39
    halves = (noisy != labels).view(2, -1).sum(1)
    assert (halves - 3000).abs().max() < 5 * 50


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"labels": torch.tensor([0, 5])}, "labels"),
        ({"labels": torch.tensor([0, -1])}, "labels"),
        ({"labels": torch.tensor([], dtype=torch.int64)}, "labels"),
        ({"labels": torch.zeros(3)}, "labels"),
        ({"labels": torch.zeros(3, 1, dtype=torch.int64)}, "labels"),
        ({"classes": 1}, "classes"),
        ({"share": -0.1}, "share"),
        ({"share": 1.1}, "share"),
        ({"share": math.nan}, "share"),
        ({"share": True}, "share"),
        ({"share": "0.1"}, "share"),
        ({"generator": None}, "generator"),
    ],
)
def test_bad_noise_is_named(change, name):
    arguments = {"labels": torch.tensor([0, 4]), "classes": 5, "share": 0.5, "generator": generator()}
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        noisy_labels(**{**arguments, **change})


@pytest.mark.parametrize(
    ("arguments", "name"), [((0, 10, generator()), "n"), ((5, 1, generator()), "classes"), ((5, 10, 0), "generator")]
)
def test_bad_random_labels_are_named(arguments, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        random_labels(*arguments)


def test_a_teacher_is_asked_and_left_as_it_was():
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Dropout(0.5), nn.Linear(5, 3))
    # One part of it in evaluation mode: each must come back to its own.
    teacher[0].eval()
    modes = [module.training for module in teacher.modules()]
    state = {name: value.clone() for name, value in teacher.state_dict().items()}
    x = torch.randn(50, 6, generator=generator())
    labels = teacher_labels(teacher, x)
    assert [module.training for module in teacher.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert torch.equal(labels, teacher_labels(teacher, x))
    teacher.eval()
    assert torch.equal(labels, teacher(x).argmax(1))
    assert labels.dtype == torch.int64
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_labels_do_not_depend_on_the_scale_of_the_scores_and_ties_go_to_the_first():
    x = torch.randn(30, 4, generator=generator(), dtype=torch.float64)
    w = torch.randn(4, 3, generator=generator(1), dtype=torch.float64)
    labels = teacher_labels(lambda x: x @ w, x)
    assert torch.equal(labels, teacher_labels(lambda x: 1e-9 * x @ w, x))
    assert torch.equal(labels, torch.tensor([max(range(3), key=row.__getitem__) for row in (x @ w).tolist()]))
    assert teacher_labels(lambda x: torch.zeros(len(x), 3), x).tolist() == [0] * 30


@pytest.mark.parametrize(
    ("teacher", "x", "name"),
    [
        (None, torch.ones(2, 3), "teacher"),
        (lambda x: x, torch.ones(3), "x"),
        (lambda x: x, torch.ones(0, 3), "x"),
        (lambda x: x, torch.full((2, 3), math.nan), "x"),
        (lambda x: x, torch.ones(2, 3, dtype=torch.int64), "x"),
        (lambda x: x * math.nan, torch.ones(2, 3), r"teacher\(x\)"),
        (lambda x: x[:, :1], torch.ones(2, 3), r"teacher\(x\)"),
        (lambda x: x[:1], torch.ones(2, 3), r"teacher\(x\)"),
        (lambda x: x.argmax(1), torch.ones(2, 3), r"teacher\(x\)"),
        (lambda x: (x, x), torch.ones(2, 3), r"teacher\(x\)"),
    ],
)
def test_bad_teachers_are_named(teacher, x, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        teacher_labels(teacher, x)


def test_a_teacher_that_fails_keeps_its_mode():
    teacher = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(RuntimeError):
        teacher_labels(teacher, torch.ones(2, 4))
    assert teacher.training
    assert teacher[0].training


# The addition problem


@pytest.mark.parametrize("steps", [2, 3, 30, 31])
def test_one_marker_in_each_half_and_their_sum(steps):
    x, y = addition_problem(2000, steps, generator())
    assert (x.shape, y.shape) == ((2000, steps, 2), (2000, 1))
    half = steps // 2
    assert set(x[..., 1].unique().tolist()) <= {0, 1}
    assert (x[:, :half, 1].sum(1) == 1).all()
    assert (x[:, half:, 1].sum(1) == 1).all()
    for i in range(20):
        first, second = x[i, :, 1].nonzero().flatten().tolist()
        assert y[i, 0] == x[i, first, 0] + x[i, second, 0]
    assert 0 <= x[..., 0].min() < 0.01
    assert 0.99 < x[..., 0].max() <= 1


def test_each_step_of_a_half_is_marked_equally_often():
    x, _ = addition_problem(40_000, 9, generator())
    counts = x[..., 1].sum(0)
    assert (counts[:4] - 10_000).abs().max() < 5 * 87
    assert (counts[4:] - 8_000).abs().max() < 5 * 80


def test_the_baseline_and_what_it_takes_to_beat_it():
    """Always 1 has the error 1/6; without the markers nothing is much better, with one marker half of it remains."""
    x, y = addition_problem(60_000, 10, generator())

    def error(answer):
        return (y[:, 0] - answer).square().mean().item()

    # Standard error about 1e-3.
    assert error(torch.ones(())) == pytest.approx(1 / 6, abs=4e-3)
    design = torch.cat([x[..., 0], torch.ones(60_000, 1, dtype=torch.float64)], dim=1)
    assert error((design @ torch.linalg.lstsq(design, y).solution)[:, 0]) > 0.12
    assert error(0.5 + (x[:, :5, 0] * x[:, :5, 1]).sum(1)) == pytest.approx(1 / 12, abs=2e-3)


def test_the_draws_do_not_depend_on_the_dtype():
    single, double = (addition_problem(50, 8, generator(), dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert single[0].dtype == single[1].dtype == torch.float32
    assert torch.equal(single[0], double[0].float())
    torch.testing.assert_close(single[1].double(), double[1], rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("change", "name"),
    [({"n": 0}, "n"), ({"steps": 1}, "steps"), ({"generator": 1}, "generator"), ({"dtype": torch.int64}, "dtype")],
)
def test_bad_problems_are_named(change, name):
    with pytest.raises((TypeError, ValueError), match=rf"^{name}: "):
        addition_problem(**{"n": 3, "steps": 4, "generator": generator(), **change})
