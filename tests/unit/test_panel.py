"""The report of all measures: the same numbers as the routines give, whatever is asked, and a network left alone."""

import json
import math

import pytest
import torch
from torch import nn

from implicitreg import measures as m
from implicitreg.citations import SOURCES, bibliography, cite, short
from implicitreg.data import digits, split
from implicitreg.dynamics import cross_entropy
from implicitreg.measures import panel, report
from implicitreg.nets import gaussian_weights, perceptron
from implicitreg.seeding import generators

NAMES = list(panel._PANEL)


def data(n=60, dtype=torch.float64):
    part = split(digits(dtype=dtype), n, torch.Generator().manual_seed(0))
    return part.x.flatten(1), part.y


def trained(sizes=(64, 16, 10), steps=60, dtype=torch.float64):
    """Return a perceptron that fits most of the data."""
    net = perceptron(gaussian_weights(sizes, torch.Generator().manual_seed(0), dtype=dtype))
    x, y = data(dtype=dtype)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


@pytest.fixture(scope="module")
def whole():
    return report(trained(), *data())


def convolutional():
    """Return a small network with everything that evaluation mode matters for."""
    torch.manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    net(torch.randn(20, 1, 8, 8))
    return net


# The numbers are those of the routines


def test_every_number_is_that_of_its_routine(whole):
    net, (x, y) = trained(), data()
    drawn = dict(zip(NAMES, generators(0, len(NAMES)), strict=True))
    expected = {
        "loss": nn.functional.cross_entropy(net(x), y).detach(),
        "error rate": (net(x).argmax(1) != y).double().mean(),
        "margin": m.margin(net, x, y),
        "path norm: l1": m.path_norm(net, 1).detach(),
        "path norm: l2": m.path_norm(net, 2).detach(),
        "sharpness": m.sharpness(net, x, y, 5e-4),
        "expected sharpness": m.expected_sharpness(net, x, y, 1e-3, drawn["expected sharpness"]).value,
        "PAC-Bayes KL": m.pac_bayes_kl_at(net, x, y, drawn["PAC-Bayes"], draws=20),
        "Hessian trace": m.hessian_trace(net, cross_entropy, x, y, drawn["Hessian trace"], max_products=100).value,
        "geometric complexity": m.geometric_complexity(net, x).value,
    }
    found = m.capacities(net, x, y)
    expected |= {
        f"capacity: {k.replace('_', '-')}": getattr(found, k) for k in ("l2", "l1_path", "l2_path", "spectral")
    }
    values = m.hessian_eigenvalues(net, cross_entropy, x, y, k=2, max_products=100).values
    expected |= {"Hessian eigenvalue 1": values[0], "Hessian eigenvalue 2": values[1]}
    lines = m.sampled_straightness(net, x, drawn["straightness"])
    for name in ("breakpoints", "gap deviation", "deflection", "non-straightness"):
        expected[name] = getattr(lines, name.replace(" ", "_").replace("-", "_")).value
    for layer in m.layer_norms(net):
        for name, value in (
            ("spectral norm", layer.spectral),
            ("Frobenius norm", layer.frobenius),
            ("stable rank", layer.stable_rank),
            ("effective rank", layer.effective_rank),
        ):
            expected[f"{name}: {layer.name}"] = value
    assert {each.name: each.value for each in whole} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-9
    )
    assert not whole.refused


def test_the_spectrum_is_that_of_the_whole_hessian():
    net = trained((64, 3, 10))
    x, y = data()
    found = report(net, x, y, measures=["Hessian eigenvalues", "Hessian trace"])
    shapes = [w.shape for w in net.parameters()]

    def loss(flat):
        parts = flat.split([s.numel() for s in shapes])
        w1, w2 = (p.reshape(s) for p, s in zip(parts, shapes, strict=True))
        return nn.functional.cross_entropy((x @ w1.T).relu() @ w2.T, y)

    flat = torch.cat([w.detach().flatten() for w in net.parameters()])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))
    for i in (1, 2):
        assert found[f"Hessian eigenvalue {i}"].value == pytest.approx(values[-i].item(), rel=1e-8)
    trace = found["Hessian trace"]
    assert abs(trace.value - values.sum().item()) <= 4 * trace.standard_error


def test_choosing_some_measures_changes_none_of_them(whole):
    chosen = ["geometric complexity", "PAC-Bayes", "straightness"]
    some = report(trained(), *data(), measures=chosen)
    for each in some:
        assert (each.value, each.standard_error) == (whole[each.name].value, whole[each.name].standard_error)
    assert {each.name for each in some} < {each.name for each in whole}


def test_another_seed_moves_what_is_drawn_and_nothing_else(whole):
    other = report(trained(), *data(), seed=1)
    moved = {each.name for each in other if each.value != whole[each.name].value}
    assert {"expected sharpness", "PAC-Bayes KL", "Hessian trace", "deflection"} <= moved
    assert not {each for each in moved if "norm:" in each or "capacity" in each or each in ("margin", "sharpness")}


def test_weight_matrices_and_the_module_of_them_agree(whole):
    net = trained()
    weights = [w.detach() for w in net.parameters()]
    bare = report(weights, *data(), measures=["margin", "capacities", "path norms", "Hessian eigenvalues"])
    for each in bare:
        assert each.value == pytest.approx(whole[each.name].value, rel=1e-8)


# What stands beside the numbers


def test_every_row_has_its_cost_its_source_and_where_something_was_drawn_its_error(whole):
    for each in whole:
        assert each.cost
        assert each.seconds >= 0
        assert bool(each.source) == (each.name not in ("loss", "error rate"))
    drawn = {each.name for each in whole if each.standard_error is not None}
    assert drawn == {
        "loss", "error rate", "expected sharpness", "PAC-Bayes KL", "Hessian trace", "geometric complexity",
        "breakpoints", "gap deviation", "deflection", "non-straightness",
    }  # fmt: skip


def test_the_error_of_pac_bayes_is_what_other_draws_differ_by():
    net, (x, y) = trained(), data()
    each = [report(net, x, y, seed=seed, measures=["PAC-Bayes"])["PAC-Bayes KL"] for seed in range(20)]
    values, errors = (torch.tensor([getattr(e, name) for e in each]) for name in ("value", "standard_error"))
    assert 0.6 < float(errors.mean() / values.std()) < 1.6


def test_less_work_takes_fewer_samples_and_says_so():
    net, (x, y) = trained(), data()
    little = report(net, x, y, work=1e6, measures=["margin", "sharpness", "PAC-Bayes", "Hessian trace"])
    for each in little:
        assert ("of 8 of 60 samples" in each.note) == (each.name != "margin")
    assert little["sharpness"].cost == "50 gradients"
    unlimited = report(net, x, y, work=math.inf, measures=["sharpness"])
    assert "samples" not in unlimited["sharpness"].note


def test_warnings_become_notes():
    net, (x, _) = trained(), data()
    found = report(net, x, net(x).argmin(1), measures=["capacities"])
    assert all(math.isinf(each.value) and "not positive" in each.note for each in found)
    assert str(found).count("not positive") == 1


def test_own_measures_enter_by_their_names():
    def largest_weight(model, x, y):
        assert not model.training
        return max(w.abs().max() for w in model.parameters())

    net = trained().train()
    found = report(net, *data(), measures=["margin", largest_weight])
    assert [each.name for each in found] == ["margin", "largest_weight"]
    assert found["largest_weight"].value == pytest.approx(float(max(w.abs().max() for w in net.parameters())))
    assert net.training

    def margin(model, x, y):
        return 0.0

    for twice in (["margin", margin], [margin], ["margin", "margin"], [largest_weight, largest_weight]):
        with pytest.raises(
            ValueError, match=r"measures: must have different names, got '(margin|largest_weight)' twice"
        ):
            report(net, *data(), measures=twice)

    def words(model, x, y):
        return "many"

    with pytest.raises(TypeError, match="measures: words must return a number, got str"):
        report(net, *data(), measures=[words])


def test_what_a_network_does_not_have_is_told_by_name():
    net = nn.Sequential(nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 10)).double()
    x, y = data()
    found = report(net, x, y)
    assert set(found.refused) == {"capacities", "path norms", "layers", "straightness"}
    assert all("Sigmoid" in reason for reason in found.refused.values())
    assert "Hessian trace" in {each.name for each in found}
    told = " ".join(str(found).split())
    assert "not measured: capacities, " in told
    assert told.count("unsupported layer Sigmoid") == len(set(found.refused.values())) < 4  # each reason once


def test_hooks_that_may_change_the_function_are_not_mixed_with_norms_of_another():
    net, (x, y) = trained(), data()
    net[0].register_forward_hook(lambda module, inputs, z: 2 * z)
    found = report(net, x, y, measures=None, work=1e8)
    assert set(found.refused) == {"capacities", "path norms", "layers", "straightness"}
    assert all("forward hook of '0' (Linear)" in reason for reason in found.refused.values())
    with pytest.raises(TypeError, match="forward hook of '0'"):
        m.capacities(net, x, y)


# As a table, as data


def test_the_table_is_the_same_every_time_and_holds_every_number(whole):
    again = report(trained(), *data())
    assert str(again) == str(whole)
    assert again._repr_html_() == whole._repr_html_()
    text = str(whole)
    assert max(map(len, text.splitlines())) <= 110
    for each in whole:
        assert f"{each.value:.4g}" in text
        assert each.name in text or each.layer is not None
    assert "seconds" not in text


def test_html_escapes_what_comes_from_the_network():
    net = nn.Sequential()
    net.add_module("<b>", nn.Linear(64, 10).double())
    assert "<b>" not in report(net, *data(), measures=["layers"])._repr_html_()


def test_dictionary_and_frame_hold_the_same(whole):
    plain = json.loads(json.dumps(whole.to_dict()))
    assert [row["name"] for row in plain["measured"]] == [each.name for each in whole]
    assert plain["network"] == "Sequential of 1,184 parameters"
    assert plain["samples"] == 60
    pandas = pytest.importorskip("pandas")
    frame = whole.to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert frame.loc["path norm: l2", "value"] == whole["path norm: l2"].value


def test_an_unknown_name_is_told_with_the_known_ones(whole):
    with pytest.raises(KeyError, match=r"margin.*got 'margins'"):
        whole["margins"]
    assert len(whole) == len(list(whole))


# The network is left alone


def state(net):
    return (
        {name: w.clone() for name, w in [*net.named_parameters(), *net.named_buffers()]},
        {name: None if w.grad is None else w.grad.clone() for name, w in net.named_parameters()},
        [part.training for part in net.modules()],
        [w.requires_grad for w in net.parameters()],
        [
            len(h)
            for part in net.modules()
            for h in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks)
        ],
        torch.get_rng_state(),
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mode", ["plain", "no_grad", "inference"])
def test_nothing_in_the_network_is_changed(training, mode):
    net = convolutional().train(training)
    net[0].eval()
    net(torch.randn(20, 1, 8, 8)).sum().backward()
    net[6].bias.requires_grad_(False)
    x, y = data(24, torch.float32)
    before = state(net)
    with {"plain": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}[mode]():
        found = report(net, x.reshape(-1, 1, 8, 8), y, work=1e9)
    assert not found.refused
    torch.testing.assert_close(state(net), before, rtol=0, atol=0)


def test_dropout_and_batch_norm_are_measured_in_evaluation_mode():
    net = convolutional()
    x, y = data(24, torch.float32)
    x = x.reshape(-1, 1, 8, 8)
    chosen = ["loss", "margin", "sharpness", "Hessian eigenvalues", "geometric complexity"]
    first, second = (report(net.train(mode), x, y, measures=chosen) for mode in (True, False))
    assert [each.value for each in first] == [each.value for each in second]


# Bad input


class Counting(nn.Module):
    """Writes into a buffer in its forward, in place or anew."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 10).double()
        self.register_buffer("inplace", torch.zeros(()))
        self.register_buffer("anew", torch.zeros(()))
        self.register_buffer("mask", torch.full((2,), -math.inf))

    def forward(self, x):
        self.inplace += 1
        self.anew = self.anew + 1
        return self.linear(x)


class Drawing(Counting):
    """Draws random numbers in evaluation mode too."""

    def forward(self, x):
        return self.linear(nn.functional.dropout(x))


def test_buffers_that_a_forward_writes_are_put_back():
    net = Counting()
    found = report(net, *data(), work=1e8)
    assert {"loss", "Hessian trace", "geometric complexity"} <= {each.name for each in found}
    assert (float(net.inplace), float(net.anew)) == (0, 0)


def test_a_network_that_is_random_in_evaluation_mode_is_refused_and_draws_nothing():
    net = Drawing()
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=r"model: outputs of a sample must .* be the same every time"):
        report(net, *data())
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_norm_without_statistics_is_refused():
    net = nn.Sequential(nn.Linear(64, 10), nn.BatchNorm1d(10, track_running_stats=False)).double()
    with pytest.raises(TypeError, match="model: batch norm '1' without running statistics has no evaluation mode"):
        report(net, *data())


def test_inputs_may_require_gradients():
    x, y = data()
    assert report(trained(), x.clone().requires_grad_(), y, measures=["loss", "margin"])["margin"].value > 0


class Two(nn.Module):
    """Returns more than scores."""

    def forward(self, x):
        return x, x


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"x": torch.zeros(60, 64, dtype=torch.int64)}, TypeError, "x: must have dtype float32 or float64, got int64"),
        ({"x": torch.zeros(60, 63, dtype=torch.float64)}, ValueError, r"x: .*\(60, 63\).*does not fit the model"),
        ({"x": torch.zeros(0, 64, dtype=torch.float64)}, ValueError, "x: must hold at least one sample"),
        ({"x": torch.full((60, 64), math.nan, dtype=torch.float64)}, ValueError, "x: must be finite"),
        ({"x": torch.zeros(60, 64)}, ValueError, "x: .*float32 does not fit the model"),
        ({"x": torch.zeros(60, 64, dtype=torch.float64, device="meta")}, ValueError, "x: must be on .*cpu.*got meta"),
        ({"y": torch.zeros(60)}, TypeError, "y: must be .*int64, got float32"),
        ({"y": torch.full((60,), 10)}, ValueError, r"y: must lie in 0 \.\.\. 9"),
        ({"y": torch.full((60,), -1)}, ValueError, r"y: must lie in 0 \.\.\. 9"),
        ({"y": torch.zeros(59, dtype=torch.int64)}, ValueError, "y: must have one class for each"),
        ({"y": torch.zeros(60, dtype=torch.int64, device="meta")}, ValueError, "y: must be on .*cpu.*got meta"),
        ({"model": "net"}, TypeError, "model: must be a torch.nn.Module or a sequence"),
        ({"model": [torch.zeros(2, 10, 64)]}, ValueError, "model: must be one network"),
        ({"measures": "margin"}, TypeError, "measures: must be a list"),
        ({"measures": ["margins"]}, ValueError, "measures: must be some of loss, margin"),
        ({"measures": []}, ValueError, "measures: must hold at least one"),
        ({"loss": 3}, TypeError, "loss: must be a function of scores and classes, got int"),
        ({"loss": nn.CrossEntropyLoss()}, ValueError, r"loss: must return the loss of each sample.*got shape \(\)"),
        ({"loss": nn.CrossEntropyLoss(reduction="sum")}, ValueError, "loss: must return the loss of each sample"),
        ({"model": Two()}, ValueError, "model: outputs must have shape .*got tuple"),
        ({"seed": -1}, ValueError, "seed: must be an integer >= 0"),
        ({"work": 0}, ValueError, "work: must be a number > 0"),
        ({"work": math.nan}, ValueError, "work: must be a number > 0"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, told):
    x, y = data()
    arguments = {"model": trained(steps=0), "x": x, "y": y, **change}
    with pytest.raises(error, match=told):
        report(**arguments)


def test_logits_that_are_not_finite_are_refused():
    net = trained(steps=0)
    with torch.no_grad():
        net[0].weight.mul_(1e300)
        net[-1].weight.mul_(1e300)
    with pytest.raises(ValueError, match="model: outputs: must be finite"):
        report(net, *data())


def test_one_sample_has_no_pairs_and_no_errors_over_samples():
    x, y = data()
    found = report(trained(), x[:1], y[:1])
    assert "straightness" in found.refused
    assert found["loss"].standard_error is None


# Citations


def test_every_routine_that_has_a_paper_can_be_cited():
    known = bibliography()
    public = {name for name in m.__all__ if callable(getattr(m, name))}
    for name, keys in SOURCES.items():
        assert set(keys) <= set(known)
        if name in public:
            assert cite(getattr(m, name)).count("@") == len(keys)
    assert {routine for _, routine in panel._PANEL.values() if routine} <= set(SOURCES) & public
    assert short("neyshabur2017exploring") == "Neyshabur et al. 2017"
    assert all(short(key) for key in known)


def test_the_report_cites_every_paper_once(whole):
    entries = whole.bibtex()
    assert entries.count("neyshabur2017exploring,") == 1
    assert "dherin2022," in entries


@pytest.mark.parametrize("other", [len, m.report, "path_norm", m.angle])
def test_what_comes_from_no_paper_is_refused(other):
    with pytest.raises(ValueError, match="routine: must be one of"):
        cite(other)
