"""Every routine computes where its inputs are, and comes to the same there.

The cases run on the CPU everywhere, so that they are known to work, and on a GPU where there is one.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from implicitreg import dynamics, measures, nets
from implicitreg.data import TensorCompletion, two_by_two
from implicitreg.reproduce.cli import main
from implicitreg.reproduce.project import Project
from implicitreg.reproduce.runs import judge, load
from implicitreg.seeding import generators

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
f64 = torch.float64


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64)


def _weights(device: str, sizes: tuple[int, ...] = (5, 8, 3)) -> list[Tensor]:
    return [w.to(device) for w in nets.gaussian_weights(sizes, torch.Generator().manual_seed(1))]


def _samples(device: str) -> tuple[Tensor, Tensor]:
    return _normal(40, 5, seed=2).to(device), (torch.arange(40) % 3).to(device)


def _predicted(device: str) -> Tensor:
    """Return labels that the network gets right, so that its margin is positive."""
    return nets.outputs(_weights(device), _samples(device)[0]).argmax(-1)


def _train(method: str) -> Callable[[str], Any]:
    def train(device: str) -> Any:
        x, y = _samples(device)
        w = [torch.stack([each, 0.5 * each]) for each in _weights(device)]
        both = {"shuffles": generators(0, 2), "method": method, "lr": 0.05, "epochs": 5, "batch": 8}
        return dynamics.train_networks(w, torch.stack([x, x]), torch.stack([y, y]), **both).weights

    return train


def _module(device: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).to(f64)
    return net.to(device)


def _completion(device: str) -> Any:
    target = torch.einsum("ni,nj,nk->nijk", *(_normal(2, 4, seed=s) for s in range(3))).sum(0, keepdim=True)
    factors = [0.1 * _normal(1, 4, 6, seed=5 + s).to(device) for s in range(3)]
    problem = TensorCompletion(target.to(device), torch.ones_like(target, dtype=torch.bool).to(device), order=3)
    return dynamics.group_rmsprop(factors, problem, tol=1.0, patience=1, check_every=1).factors


CASES: dict[str, Callable[[str], Any]] = {
    "schatten_norm": lambda d: measures.schatten_norm(_normal(3, 4, 5).to(d), 0.5),
    "effective_rank": lambda d: measures.effective_rank(_normal(3, 4, 4).to(d)),
    "distance_from_rank": lambda d: measures.distance_from_rank(_normal(3, 4, 4).to(d), 1),
    "path_norm": lambda d: measures.path_norm(_weights(d)),
    "capacities": lambda d: measures.capacities(_weights(d), _samples(d)[0], _predicted(d)),
    "sharpness": lambda d: measures.sharpness(_weights(d), *_samples(d), 1e-3, steps=5),
    "segment_profile": lambda d: measures.segment_profile(_weights(d), *_normal(2, 5, seed=7).to(d)),
    "input_gradients": lambda d: measures.input_gradients(_module(d), _samples(d)[0]),
    "hessian_eigenvalues": lambda d: measures.hessian_eigenvalues(
        _module(d), nn.functional.cross_entropy, *_samples(d), k=2
    ),
    "gradient_descent": lambda d: dynamics.gradient_descent(
        [w.to(d) for w in nets.balanced_factors(0.1 * torch.eye(2, dtype=f64)[None], 3)],
        two_by_two(),
        3e-3,
        losses=[0.5],
    ),
    "balanced_flow": lambda d: dynamics.balanced_flow(
        torch.tensor([[1.0, 0.2], [-0.1, 0.5]], dtype=f64).to(d), 3, losses=[0.5, 0.1]
    ),
    "train_networks, sgd": _train("sgd"),
    "train_networks, path-sgd": _train("path-sgd"),
    "train_networks, adagrad": _train("adagrad"),
    "group_rmsprop": _completion,
}


def _tensors(result: Any) -> Iterator[Tensor]:
    """Yield every tensor in a result."""
    if isinstance(result, Tensor):
        yield result
    elif is_dataclass(result):
        for field in fields(result):
            yield from _tensors(getattr(result, field.name))
    elif isinstance(result, (list, tuple)):
        for each in result:
            yield from _tensors(each)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=gpu)])
def test_results_are_where_the_inputs_are_and_the_same(name: str, device: str) -> None:
    found, expected = list(_tensors(CASES[name](device))), list(_tensors(CASES[name]("cpu")))
    assert found
    assert {tensor.device.type for tensor in found} == {device}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-6, atol=1e-9)


@gpu
def test_the_report_is_the_same() -> None:
    here, there = (measures.report(_module(d), *_samples(d)).to_dict() for d in ("cpu", "cuda"))
    for one, other in zip(here["measures"], there["measures"], strict=True):
        assert one["name"] == other["name"]
        assert one["value"] == pytest.approx(other["value"], rel=1e-4)


@gpu
@pytest.mark.parametrize("chapter", ["rank", "curvature", "path_norm", "data_dependence"])
def test_the_same_claims_hold(chapter: str, tmp_path: Any) -> None:
    arguments = ["reproduce", chapter, "--scale", "smoke", "--device", "cuda", "--output", str(tmp_path)]
    assert main(arguments) == 0
    project = Project.find(Path(__file__))
    run = load(project, tmp_path / "smoke-seed0")
    for one in judge(project, run.notebooks, "smoke"):
        claim = one.judgement.claim
        if claim.folder == chapter:
            assert one.judgement.verdict == (claim.expected if "smoke" in claim.scales else "not run")
