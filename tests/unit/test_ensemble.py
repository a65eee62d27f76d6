"""Training many networks at once against autograd and torch's own optimisers, one network after another."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from mutation import mutated

from implicitreg.dynamics import PathSGD, train_networks, truncated_cross_entropy
from implicitreg.nets import gaussian_weights, outputs, path_scales, perceptron, rescale_nodes

ensemble_module = sys.modules["implicitreg.dynamics.ensemble"]
N, INPUTS, CLASSES, MEMBERS = 37, 5, 3, 3
EPOCHS, BATCH = 4, 10
SCHEDULE = (0.5, 0.2, 0.8)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def shuffles(m=MEMBERS, seed=100):
    return [generator(seed + i) for i in range(m)]


def setting(hidden=(8,), m=MEMBERS, dtype=torch.float64):
    """Return starts, inputs and labels of every member."""
    starts = [gaussian_weights((INPUTS, *hidden, CLASSES), generator(i), dtype=dtype) for i in range(m)]
    weights = [torch.stack(each) for each in zip(*starts, strict=True)]
    x = torch.randn(m, N, INPUTS, generator=generator(7), dtype=torch.float64).to(dtype)
    return weights, x, torch.randint(CLASSES, (m, N), generator=generator(8))


def cross_entropy(scores, labels):
    return torch.nn.functional.cross_entropy(scores, labels, reduction="none")


def by_hand(weights, hidden, alpha):
    """Return the scales of data-dependent paths of two layers, written out."""
    (w1, w2), (x, h) = weights, hidden
    gamma = alpha * (x @ w1.T).square().mean(0) + (1 - alpha) * w1.square().sum(1)
    outer = (1 - alpha) * w2.square().sum(0)
    inner = alpha * x.square().mean(0) + 1 - alpha
    return [outer[:, None] * inner, (alpha * h.square().mean(0) + (1 - alpha) * gamma).expand_as(w2)]


def reference(weights, x, y, source, *, lr, method="sgd", alpha=0.0, loss="cross_entropy", **options):
    """Train one network with autograd and torch.optim; return its weights and the losses of its epochs."""
    epochs, batch = options.get("epochs", EPOCHS), options.get("batch", BATCH)
    net = perceptron(weights)
    parameters = list(net.parameters())
    schedule = options.get("momentum", 0.0)
    first, step, most = schedule if isinstance(schedule, tuple) else (schedule, 0.0, schedule)
    if method == "adagrad":
        optimizer = torch.optim.Adagrad(parameters, lr=lr, eps=1e-8)
    else:
        optimizer = torch.optim.SGD(parameters, lr=lr, momentum=first, weight_decay=options.get("weight_decay", 0.0))
    each = {"cross_entropy": cross_entropy, "truncated": truncated_cross_entropy}[loss]
    history = []
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = lr * options.get("decay", 1.0) ** epoch
            if method != "adagrad":
                group["momentum"] = min(most, first + step * epoch)
        total = 0.0
        for index in torch.randperm(len(x), generator=source).split(batch):
            optimizer.zero_grad()
            losses = each(net(x[index]), y[index])
            losses.mean().backward()
            total += losses.sum().item()
            with torch.no_grad():
                if method == "path-sgd":
                    scales = path_scales([w.detach() for w in parameters])
                elif method == "ddp-sgd":
                    scales = by_hand(parameters, (x[index], net[:2](x[index])), alpha)
                else:
                    scales = [torch.ones_like(w) for w in parameters]
                for w, scale in zip(parameters, scales, strict=True):
                    w.grad = torch.where(w.grad == 0, 0.0, w.grad / scale)
            optimizer.step()
        history.append(total / len(x))
        if history[-1] < options.get("stop", 0.0) or not math.isfinite(history[-1]):
            break
    return [w.detach() for w in parameters], history


def compare(train=train_networks, hidden=(8,), lr=0.1, rtol=1e-10, **options):
    weights, x, y = setting(hidden)
    settings = {"epochs": EPOCHS, "batch": BATCH, "lr": lr, **options}
    result = train(weights, x, y, shuffles=shuffles(), **settings)
    for i, source in enumerate(shuffles()):
        single = {**settings, "lr": lr[i].item() if isinstance(lr, torch.Tensor) else lr}
        if isinstance(options.get("weight_decay"), torch.Tensor):
            single["weight_decay"] = options["weight_decay"][i].item()
        expected, history = reference([w[i] for w in weights], x[i], y[i], source, **single)
        for a, b in zip(result.weights, expected, strict=True):
            torch.testing.assert_close(a[i], b, rtol=rtol, atol=1e-12)
        assert result.history[i, : len(history)].tolist() == pytest.approx(history, rel=1e-10)
        assert result.history[i, len(history) :].isnan().all()
        assert result.epochs[i] == len(history)
        assert result.loss[i] == result.history[i, len(history) - 1]
        assert result.reached[i].item() == (history[-1] < options.get("stop", 0.0))
    return result


ALL = {"momentum": SCHEDULE, "decay": 0.9, "weight_decay": 0.03}


@pytest.mark.parametrize("hidden", [(), (8,), (6, 7)])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"weight_decay": 0.05}, {"loss": "truncated"}, ALL])
def test_sgd_is_that_of_torch(hidden, options):
    compare(hidden=hidden, **options)


@pytest.mark.parametrize("batch", [1, 36, 37, 100])
def test_batches_that_do_not_divide_the_data(batch):
    compare(batch=batch, momentum=0.5, epochs=2)


@pytest.mark.parametrize("hidden", [(), (8,), (6, 7)])
@pytest.mark.parametrize("options", [{}, ALL])
def test_path_sgd_is_that_of_autograd(hidden, options):
    compare(hidden=hidden, method="path-sgd", lr=0.05, **options)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5])
def test_ddp_sgd_against_its_recursion(alpha):
    compare(method="ddp-sgd", alpha=alpha, lr=0.05, momentum=0.5)


@pytest.mark.parametrize("hidden", [(), (8,), (6, 7)])
def test_adagrad_is_that_of_torch(hidden):
    compare(hidden=hidden, method="adagrad", lr=0.05, decay=0.95)


def test_a_step_size_and_a_weight_decay_for_each_member():
    rates, decays = (torch.tensor(v, dtype=torch.float64) for v in ([0.01, 0.1, 0.3], [0.1, 0.0, 0.02]))
    compare(lr=rates, weight_decay=decays, momentum=0.9)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("beta=mu", "beta=0"),
        ("mu = min(momentum[2], ", "mu = max(momentum[2], "),
        ("momentum[1] * epoch", "momentum[1]"),
        ("v.mul_(mu).add_(gradient)", "v.copy_(gradient)"),
        ("eta = eta * decay", "pass"),
        ("v.addcmul_(w[i], shrink)", "pass"),
        ("back /= losses.shape[-1]", "back /= batch"),  # the last batch is smaller
        ("else total / n", "else total / batch"),
        ("gradient / scales[i]", "gradient / scales[i].sqrt()"),
        ("squares[i].addcmul_(gradient, gradient)", "squares[i] = gradient.square()"),
        ("threshold_backward(torch.bmm(w[i].mT, back), h, 0)", "threshold_backward(torch.bmm(w[i].mT, back), h, -1)"),
        ("w[i].addcmul_(v, eta, value=-1)", "w[i].addcmul_(v, eta)"),
        ("total += losses.sum(-1)", "total = losses.sum(-1)"),
        ("trained[members] = epoch + 1", "trained[members] = epoch"),
        ("going = torch.isfinite(mean) & (mean >= stop)", "going = torch.isfinite(mean)"),
        ("[each[keep] for each in group]", "[each.flip(0)[keep] for each in group]"),
        ("truncated=truncated", "truncated=False"),
    ],
)
def test_mutants_of_the_loop_are_caught(monkeypatch, right, wrong):
    monkeypatch.setattr(ensemble_module, "_train", mutated(ensemble_module, "_train", right, wrong)._train)
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        check_loop()


def check_loop():
    compare(**ALL)
    compare(method="path-sgd", lr=0.05, momentum=0.5)
    compare(method="adagrad", lr=0.05)
    stopping()
    scale = torch.tensor(8.0)
    weights, x, y = setting()
    weights = [scale * w for w in weights]  # margins beyond the knee
    truncated = train_networks(weights, x, y, lr=0.1, epochs=3, batch=BATCH, shuffles=shuffles(), loss="truncated")
    for i, source in enumerate(shuffles()):
        expected, _ = reference(
            [w[i] for w in weights], x[i], y[i], source, lr=0.1, epochs=3, loss="truncated", batch=BATCH
        )
        torch.testing.assert_close(truncated.weights[0][i], expected[0], rtol=1e-10, atol=1e-12)


def test_the_loop_as_a_whole():
    check_loop()


# Members are independent


def stopping(m=5, **options):
    """Train members that stop at different times, together and one at a time."""
    weights, x, y = setting((12,), m=m)
    y[:] = outputs(weights, x).argmax(-1)
    weights = [w.flip(0) for w in weights]
    arguments = {"lr": 0.3, "epochs": 60, "batch": BATCH, "momentum": SCHEDULE, "decay": 0.99, "stop": 0.25, **options}
    together = train_networks(weights, x, y, shuffles=shuffles(m), **arguments)
    alone = [
        train_networks([w[[i]] for w in weights], x[[i]], y[i], shuffles=[source], **arguments)
        for i, source in enumerate(shuffles(m))
    ]
    for i, single in enumerate(alone):
        assert together.epochs[i] == single.epochs[0]
        assert together.reached[i] == single.reached[0]
        torch.testing.assert_close(together.history[i], single.history[0], rtol=1e-9, atol=0, equal_nan=True)
        torch.testing.assert_close(together.loss[i], single.loss[0], rtol=1e-9, atol=0, equal_nan=True)
        for a, b in zip(together.weights, single.weights, strict=True):
            torch.testing.assert_close(a[i], b[0], rtol=1e-8, atol=1e-10, equal_nan=True)
    for i, epochs in enumerate(together.epochs.tolist()):
        history = together.history[i]
        assert history[:epochs].isfinite().all()
        assert history[epochs:].isnan().all()
        assert (history[: epochs - 1] >= arguments["stop"]).all()
        assert together.reached[i] == (history[epochs - 1] < arguments["stop"])
        assert together.loss[i] == history[epochs - 1]
        assert together.reached[i] or epochs == arguments["epochs"]
    return together


@pytest.mark.parametrize("method", ["sgd", "path-sgd", "adagrad"])
def test_members_do_not_influence_each_other(method):
    result = stopping(method=method, lr=0.1 if method == "adagrad" else 0.3 if method == "sgd" else 0.03)
    assert len(set(result.epochs.tolist())) > 1


def test_groups_of_members_give_the_same(monkeypatch):
    whole = stopping()
    for size in (1, 10**3, 2 * 10**3):
        monkeypatch.setattr(ensemble_module, "_WORKING_SET", size)
        pieces = stopping()
        torch.testing.assert_close(pieces.history, whole.history, rtol=1e-9, atol=0, equal_nan=True)
        assert torch.equal(pieces.epochs, whole.epochs)


def test_a_cap_is_marked():
    result = stopping(epochs=5)
    assert len(set(result.reached.tolist())) == 2
    assert result.epochs.max() == 5
    assert result.history.shape == (5, 5)


def test_shared_data_and_equal_shuffles():
    weights, x, y = setting()
    arguments = {"lr": 0.1, "epochs": 3, "batch": BATCH}
    shared = train_networks(weights, x[0], y[0], shuffles=shuffles(), **arguments)
    own = train_networks(weights, x[:1].expand_as(x), y[:1].expand_as(y), shuffles=shuffles(), **arguments)
    assert all(torch.equal(a, b) for a, b in zip(shared.weights, own.weights, strict=True))
    mixed = train_networks(weights, x[0], y[:1].expand_as(y), shuffles=shuffles(), **arguments)
    assert all(torch.equal(a, b) for a, b in zip(shared.weights, mixed.weights, strict=True))
    same = [w[:1].expand_as(w) for w in weights]
    equal = train_networks(same, x[0], y[0], shuffles=[generator(5) for _ in range(MEMBERS)], **arguments)
    different = train_networks(same, x[0], y[0], shuffles=shuffles(), **arguments)
    for i in range(1, MEMBERS):
        torch.testing.assert_close(equal.weights[0][i], equal.weights[0][0], rtol=1e-12, atol=1e-14)
        assert not torch.allclose(different.weights[0][i], different.weights[0][0], rtol=1e-3)


def test_divergence_is_marked_and_does_not_spread():
    weights, x, y = setting()
    rates = torch.tensor([0.1, 1e9, 0.1], dtype=torch.float64)
    result = train_networks(weights, 1e3 * x, y, lr=rates, epochs=20, batch=BATCH, shuffles=shuffles(), momentum=0.9)
    alone = train_networks(
        [w[[0, 2]] for w in weights], 1e3 * x[[0, 2]], y[[0, 2]],
        lr=0.1, epochs=20, batch=BATCH, shuffles=[shuffles()[0], shuffles()[2]], momentum=0.9,
    )  # fmt: skip
    torch.testing.assert_close(result.history[[0, 2]], alone.history, rtol=1e-9, atol=0, equal_nan=True)
    blown = [w.clone() for w in weights]
    blown[0][1] = 1e200
    result = train_networks(blown, x, y, lr=0.1, epochs=5, batch=BATCH, shuffles=shuffles())
    assert result.epochs.tolist() == [5, 1, 5]
    assert not result.loss[1].isfinite()
    assert result.loss[[0, 2]].isfinite().all()
    assert result.history[1, 1:].isnan().all()
    stopped = train_networks(blown, x, y, lr=0.1, epochs=5, batch=BATCH, shuffles=shuffles(), stop=1e9)
    assert stopped.reached.tolist() == [True, False, True]
    assert stopped.epochs.tolist() == [1, 1, 1]


def test_a_truncated_loss_of_0_is_no_divergence():
    w = [100 * torch.eye(2, dtype=torch.float64)[None]]
    x, y = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])
    arguments = {"lr": 0.1, "epochs": 3, "loss": "truncated"}
    result = train_networks(w, x, y, shuffles=[generator()], **arguments)
    assert result.history.tolist() == [[0, 0, 0]]
    assert torch.equal(result.weights[0], w[0])
    assert not result.reached.any()
    assert train_networks(w, x, y, shuffles=[generator()], stop=0.01, **arguments).epochs.tolist() == [1]


def test_weights_without_a_gradient_stay_under_path_sgd():
    """A dead unit has no gradient, and one without outgoing weights the scale 0: no step, not NaN."""
    weights, x, y = setting()
    weights[1][:, :, 0] = 0
    weights[0][:, 1] = -1
    result = train_networks(weights, x.abs(), y, lr=0.01, epochs=2, batch=BATCH, shuffles=shuffles(), method="path-sgd")
    assert all(w.isfinite().all() for w in result.weights)
    assert torch.equal(result.weights[0][:, 1], weights[0][:, 1])


def test_path_sgd_does_not_see_rescaled_units_and_sgd_does():
    weights, x, y = setting((8, 8))
    other = rescale_nodes(weights, generator(3), scale=1.0)
    arguments = {"epochs": 50, "batch": BATCH, "momentum": 0.9}
    for method, lr in (("path-sgd", 0.003), ("sgd", 0.003)):
        a, b = (
            train_networks(w, x, y, lr=lr, method=method, shuffles=shuffles(), **arguments) for w in (weights, other)
        )
        before, after = outputs(a.weights, x), outputs(b.weights, x)
        error = ((before - after).flatten(1).norm(dim=1) / before.flatten(1).norm(dim=1)).max()
        assert error < 1e-10 if method == "path-sgd" else not error < 0.05


def test_path_sgd_is_that_of_the_optimizer():
    weights, x, y = setting((6, 7))
    result = train_networks(
        weights, x, y, lr=0.02, epochs=3, batch=BATCH, momentum=0.9, method="path-sgd", shuffles=shuffles()
    )
    for i, source in enumerate(shuffles()):
        net = perceptron([w[i] for w in weights])
        optimizer = PathSGD(net, lr=0.02, momentum=0.9)
        for _ in range(3):
            for index in torch.randperm(N, generator=source).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(net(x[i][index]), y[i][index]).mean().backward()
                optimizer.step()
        for a, b in zip(result.weights, net.parameters(), strict=True):
            torch.testing.assert_close(a[i], b.detach(), rtol=1e-9, atol=1e-12)


# Dropout


def thinned(weights, x, y, source, dropout, *, lr, epochs, momentum=0.0, loss="cross_entropy"):
    """Train one network with autograd and masks written out; return weights and losses of the whole network."""
    parameters = [w.clone().requires_grad_() for w in weights]
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    each = {"cross_entropy": cross_entropy, "truncated": truncated_cross_entropy}[loss]
    history = []
    for _ in range(epochs):
        for index in torch.randperm(len(x), generator=source).split(BATCH):
            optimizer.zero_grad()
            h = x[index]
            for w in parameters[:-1]:
                h = (h @ w.T).relu()
                stays = torch.rand(h.T.shape, generator=source).T.ge(dropout)
                h = h * stays / (1 - dropout)
            each(h @ parameters[-1].T, y[index]).mean().backward()
            optimizer.step()
        history.append(each(outputs([w.detach() for w in parameters], x), y).mean().item())
    return [w.detach() for w in parameters], history


def check_dropout(monkeypatch):
    # More samples than one chunk of the loss holds.
    monkeypatch.setattr(ensemble_module, "_CHUNK", 16)
    for hidden, dropout, options in (
        ((8,), 0.5, {}),
        ((6, 7), 0.25, {"momentum": 0.9, "loss": "truncated"}),
        ((), 0.5, {}),
    ):
        weights, x, y = setting(hidden)
        how = {"lr": 0.1, "epochs": EPOCHS, **options}
        for shared in (False, True):
            data = (x[0], y[0]) if shared else (x, y)
            result = train_networks(weights, *data, batch=BATCH, shuffles=shuffles(), dropout=dropout, **how)
            for i, source in enumerate(shuffles()):
                own = (x[0], y[0]) if shared else (x[i], y[i])
                expected, history = thinned([w[i] for w in weights], *own, source, dropout, **how)
                for a, b in zip(result.weights, expected, strict=True):
                    torch.testing.assert_close(a[i], b, rtol=1e-10, atol=1e-12)
                assert result.history[i].tolist() == pytest.approx(history, rel=1e-10)
                assert result.loss[i] == result.history[i, -1]


def test_dropout_is_that_of_autograd_and_its_loss_that_of_the_whole_network(monkeypatch):
    check_dropout(monkeypatch)


@pytest.mark.parametrize(
    ("where", "right", "wrong"),
    [
        ("_train", "back *= kept", "pass"),
        ("_train", "kept = 1 / (1 - dropout)", "kept = 1.0"),
        ("_train", "_loss(w, xs, ys, truncated) if exact or dropout else total / n", "total / n"),
        ("_masks", ">= dropout", "< dropout"),
        ("_loss", "labels = y[:, low : low + _CHUNK]", "labels = y[:, : x[:, low : low + _CHUNK].shape[1]]"),
        ("_loss", "clamp_min_(0)", "abs_()"),
    ],
)
def test_mutants_of_dropout_are_caught(monkeypatch, where, right, wrong):
    mutant = mutated(ensemble_module, where, right, wrong)
    mutant._CHUNK = 16
    monkeypatch.setattr(ensemble_module, where, getattr(mutant, where))
    with pytest.raises(AssertionError):
        check_dropout(monkeypatch)


def test_members_with_dropout_do_not_influence_each_other():
    # The stop is tested on the loss of whole networks, or these could not reach it.
    result = stopping(dropout=0.5, stop=0.4, epochs=80)
    assert len(set(result.epochs.tolist())) > 1
    assert result.reached.any()


@pytest.mark.parametrize("how", [{"dropout": 0.3}, {"exact": True}, {"exact": True, "momentum": 0.5}])
def test_the_loss_at_the_stop_is_that_of_the_network_returned(how):
    weights, x, y = setting((12,))
    y = outputs(weights, x).argmax(-1)
    start = [w.flip(0) for w in weights]
    result = train_networks(start, x, y, lr=0.3, epochs=80, batch=BATCH, stop=0.3, shuffles=shuffles(), **how)
    exact = cross_entropy(outputs(result.weights, x).transpose(1, 2), y).mean(1)
    assert result.reached.all()
    torch.testing.assert_close(result.loss, exact)


def test_an_exact_loss_changes_when_training_stops_and_nothing_else():
    weights, x, y = setting((6, 7))
    arguments = {"lr": 0.1, "epochs": 3, "batch": BATCH}
    plain = train_networks(weights, x, y, shuffles=shuffles(), **arguments)
    other = train_networks(weights, x, y, shuffles=shuffles(), exact=True, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, other.weights, strict=True))
    assert not torch.allclose(plain.loss, other.loss, rtol=1e-3)


def test_no_dropout_changes_nothing():
    weights, x, y = setting((6, 7))
    arguments = {"lr": 0.1, "epochs": 3, "batch": BATCH}
    plain = train_networks(weights, x, y, shuffles=shuffles(), **arguments)
    other = train_networks(weights, x, y, shuffles=shuffles(), dropout=0.0, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, other.weights, strict=True))
    assert torch.equal(plain.history, other.history)
    dropped = train_networks(weights, x, y, shuffles=shuffles(), dropout=0.1, **arguments)
    assert not torch.allclose(plain.weights[0], dropped.weights[0], rtol=1e-3)


# What goes in stays; single precision


def test_the_start_is_not_changed_and_nothing_is_recorded():
    weights, x, y = setting()
    weights = [w.requires_grad_() for w in weights]
    copies = [each.detach().clone() for each in (*weights, x, y)]
    state = torch.random.get_rng_state()
    result = train_networks(weights, x, y, lr=0.1, epochs=2, batch=BATCH, shuffles=shuffles())
    assert all(torch.equal(a, b) for a, b in zip((*weights, x, y), copies, strict=True))
    assert not any(w.requires_grad for w in (*result.weights, result.loss, result.history))
    assert all(w.grad is None for w in weights)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_float32():
    weights, x, y = setting()
    arguments = {"lr": 0.1, "epochs": 5, "batch": BATCH, "momentum": 0.9}
    double = train_networks(weights, x, y, shuffles=shuffles(), **arguments)
    single = train_networks([w.float() for w in weights], x.float(), y, shuffles=shuffles(), **arguments)
    assert {each.dtype for each in (*single.weights, single.loss, single.history)} == {torch.float32}
    torch.testing.assert_close(single.history.double(), double.history, rtol=1e-4, atol=1e-5)


# Refusals


W, X, Y = setting()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"weights": []}, ValueError, "weights: must hold at least one weight matrix"),
        ({"weights": torch.nn.Linear(5, 3)}, TypeError, "weights: must be a sequence of weight matrices, got Linear"),
        ({"weights": [W[0][0], W[1][0]]}, ValueError, r"weights: must have shapes \(m, h, h'\)"),
        ({"weights": [W[0], W[1][:2]]}, ValueError, r"weights: must have shapes \(m, h, h'\)"),
        ({"weights": [W[0], W[1][:, :, 1:]]}, ValueError, r"weights\[1\]: .* does not follow"),
        ({"weights": [w.half() for w in W]}, TypeError, r"weights\[0\]: must have dtype"),
        ({"x": X[..., 1:]}, ValueError, r"x: must have shape \(n, 5\) or \(3, n, 5\)"),
        ({"x": X[:2]}, ValueError, "x: must have shape"),
        ({"x": X[:, :0], "y": Y[:, :0]}, ValueError, "x: must have shape"),
        ({"x": X.float()}, ValueError, "x: must have the dtype and device of the weights"),
        ({"x": X.tolist()}, TypeError, "x: must be a torch.Tensor"),
        ({"x": X * math.nan}, ValueError, "x: must be finite"),
        ({"weights": [W[0], W[1] * math.inf]}, ValueError, r"weights\[1\]: must be finite"),
        ({"y": Y + 1}, ValueError, r"y: must lie in 0 \.\.\. 2, got 1 \.\.\. 3"),
        ({"y": Y[:, 1:]}, ValueError, "y: must have one class for each"),
        ({"y": Y[:2]}, ValueError, "y: must "),
        ({"y": Y[0, :0]}, ValueError, "y: must have shape"),
        ({"y": Y.double()}, TypeError, "y: must be a torch.Tensor of dtype int64"),
        ({"lr": 0}, ValueError, "lr: must be a finite number > 0"),
        ({"lr": -0.1}, ValueError, "lr: "),
        ({"lr": math.nan}, ValueError, "lr: "),
        ({"lr": "0.1"}, ValueError, "lr: "),
        ({"lr": torch.tensor([0.1, 0.1])}, ValueError, r"lr: must be a number or have shape \(3,\), got \(2,\)"),
        ({"lr": torch.tensor([0.1, 0.0, 0.1])}, ValueError, "lr: must be finite and > 0 for every member"),
        ({"weight_decay": -1}, ValueError, "weight_decay: "),
        ({"weight_decay": torch.tensor([0.1, -0.1, 0.0])}, ValueError, "weight_decay: must be finite and >= 0"),
        ({"epochs": 0}, ValueError, "epochs: must be an integer >= 1"),
        ({"epochs": 1.5}, ValueError, "epochs: "),
        ({"batch": 0}, ValueError, "batch: must be an integer >= 1"),
        ({"momentum": 1}, ValueError, r"momentum: must be in \[0, 1\)"),
        ({"momentum": -0.1}, ValueError, "momentum: "),
        ({"momentum": (0.9, 0.1, 0.5)}, ValueError, "momentum: "),
        ({"momentum": (0.5, -0.1, 0.9)}, ValueError, "momentum: "),
        ({"momentum": (0.5, 0.1)}, ValueError, "momentum: "),
        ({"momentum": "0.9"}, ValueError, "momentum: "),
        ({"momentum": None}, ValueError, "momentum: "),
        ({"decay": 0}, ValueError, r"decay: must be in \(0, 1\]"),
        ({"decay": "a"}, ValueError, "decay: must be in"),
        ({"stop": "a"}, ValueError, "stop: must be a number >= 0"),
        ({"alpha": "a"}, ValueError, "alpha: "),
        ({"decay": 1.1}, ValueError, "decay: "),
        ({"stop": -1}, ValueError, "stop: must be a number >= 0"),
        ({"stop": math.nan}, ValueError, "stop: "),
        ({"loss": "hinge"}, ValueError, "loss: must be one of cross_entropy, truncated"),
        ({"method": "adam"}, ValueError, "method: must be one of sgd, path-sgd, ddp-sgd, adagrad"),
        ({"alpha": 0.5}, ValueError, "alpha: "),
        ({"alpha": 1.0, "method": "ddp-sgd"}, ValueError, "alpha: "),
        ({"dropout": 1.0}, ValueError, "dropout: must be a number >= 0 and < 1, got 1.0"),
        ({"dropout": -0.1}, ValueError, "dropout: "),
        ({"dropout": "0.5"}, ValueError, "dropout: "),
        ({"dropout": 0.5, "method": "ddp-sgd"}, ValueError, "dropout: must be 0 where the method is 'ddp-sgd'"),
        ({"shuffles": shuffles(2)}, ValueError, "shuffles: must hold one generator for each of 3 members, got 2"),
        ({"shuffles": [0, 1, 2]}, TypeError, "shuffles: must be a torch.Generator"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    arguments = {"weights": W, "x": X, "y": Y, "lr": 0.1, "epochs": 1, "batch": BATCH, "shuffles": shuffles()}
    arguments = SimpleNamespace(**{**arguments, **change})
    rest = {name: value for name, value in vars(arguments).items() if name not in ("weights", "x", "y")}
    with pytest.raises(error, match=f"^{words}"):
        train_networks(arguments.weights, arguments.x, arguments.y, **rest)
