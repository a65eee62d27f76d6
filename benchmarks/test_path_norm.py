"""Path norm, capacities, scales of Path-SGD and the width sweep against what one writes first, in the same run.

``make bench`` prints pytest-benchmark's table, the ratios of the single routines, and a table of the width sweep.
"""

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from implicitreg.data import digits, random_labels, split
from implicitreg.dynamics import train_networks
from implicitreg.measures import capacities, path_norm
from implicitreg.nets import gaussian_weights, path_scales, perceptron

SEEDS, EPOCHS, BATCH = 8, 5, 100
SCHEDULE, RATE, DECAY = (0.5, 0.02, 0.9), 0.02, 0.99
MEMBERS = 2 * SEEDS
# Epochs until the loss is below 0.01, at most 600, with true and with random labels, as measured with this step size:
# they weigh the widths in the time of the whole sweep.
REAL_EPOCHS = {
    4: (600, 600),
    8: (600, 600),
    16: (350, 600),
    32: (185, 600),
    64: (130, 600),
    128: (100, 600),
    256: (90, 600),
    512: (70, 600),
    1024: (50, 600),
}


def network(*sizes):
    return perceptron(gaussian_weights(sizes, torch.Generator().manual_seed(0), dtype=torch.float32))


def powered(net):
    """Return a copy of a network with squared weights: how published code starts."""
    other = copy.deepcopy(net).eval()
    with torch.no_grad():
        for w in other.parameters():
            w.pow_(2)
    return other


# One path norm


def test_path_norm(benchmark):
    net = network(64, 256, 256, 10)
    benchmark.group = "path norm of 64-256-256-10, float32, one thread"
    benchmark.extra_info.update(seeds=1, steps=1, alternative="test_path_norm_by_a_copy")
    with torch.no_grad():
        assert benchmark(path_norm, net) > 0


def test_path_norm_by_a_copy(benchmark):
    """Copy the network, square its weights, pass ones through it."""
    net = network(64, 256, 256, 10)
    benchmark.group = "path norm of 64-256-256-10, float32, one thread"
    benchmark.extra_info.update(seeds=1, steps=1, alternative="test_path_norm_by_a_copy")

    def copied():
        with torch.no_grad():
            return powered(net)(torch.ones(1, 64)).sum().sqrt()

    torch.testing.assert_close(benchmark(copied), path_norm(net).detach())


# Four capacities


def test_capacities(benchmark):
    """What they take beyond one forward pass over the data and one singular value decomposition a layer."""
    net = network(64, 256, 256, 10)
    x = torch.randn(1000, 64, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(-1)
    benchmark.group = "four capacities of 64-256-256-10, n = 1,000, float32, one thread"
    beyond = []

    def parts():
        with torch.no_grad():
            net(x)
            for w in net.parameters():
                torch.linalg.svdvals(w)

    def once():
        start = time.thread_time()
        parts()
        between = time.thread_time()
        capacities(net, x, y)
        beyond.append(time.thread_time() - 2 * between + start)

    benchmark.pedantic(capacities, (net, x, y), rounds=50, warmup_rounds=5)
    for _ in range(100):
        once()
    milliseconds = 1e3 * median(beyond)
    benchmark.extra_info["beyond_ms"] = milliseconds
    benchmark.extra_info["table"] = [
        f"{milliseconds:.2f} ms of processor time beyond a forward pass and the singular values (median of 100 pairs)"
    ]


# Scales of Path-SGD


def test_path_scales(benchmark):
    net = network(784, 1000, 1000, 10)
    benchmark.group = "scales of Path-SGD for 784-1000-1000-10, float32, one thread"
    benchmark.extra_info.update(seeds=1, steps=1, alternative="test_path_scales_by_a_copy")
    benchmark(path_scales, net)


def test_path_scales_by_a_copy(benchmark):
    """Copy the network, square its weights, pass ones through it and back."""
    net = network(784, 1000, 1000, 10)
    benchmark.group = "scales of Path-SGD for 784-1000-1000-10, float32, one thread"
    benchmark.extra_info.update(seeds=1, steps=1, alternative="test_path_scales_by_a_copy")

    def copied():
        other = powered(net)
        other(torch.ones(1, 784)).sum().backward()
        return [w.grad for w in other.parameters()]

    torch.testing.assert_close(benchmark(copied), list(path_scales(net).values()))


# The width sweep


def plain(weights, x, y, generator):
    """Train one network with autograd and torch.optim."""
    net = perceptron(weights)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    first, step, most = SCHEDULE
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group.update(lr=RATE * DECAY**epoch, momentum=min(most, first + step * epoch))
        total = 0.0
        for index in torch.randperm(len(x), generator=generator).split(BATCH):
            optimizer.zero_grad()
            loss = F.cross_entropy(net(x[index]), y[index])
            loss.backward()
            optimizer.step()
            total += len(index) * loss.item()
    return [w.detach() for w in net.parameters()]


def seeded(members):
    return [torch.Generator().manual_seed(i) for i in members]


def together(weights, x, y, members):
    """Train some members as one program."""
    part = slice(members.start, members.stop)
    result = train_networks(
        [w[part] for w in weights],
        x[part],
        y[part],
        lr=RATE,
        epochs=EPOCHS,
        batch=BATCH,
        momentum=SCHEDULE,
        decay=DECAY,
        shuffles=seeded(members),
    )
    return result.weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_width_sweep(benchmark, dtype):
    """9 widths × 8 seeds × true and random labels: two threads of ensembles, against one network after another."""
    parts = [split(digits(dtype=dtype), 1000, generator) for generator in seeded(range(SEEDS))]
    # Members 2 i and 2 i + 1 have true and random labels, so that either thread has as many of both.
    x = torch.stack([part.x for part in parts for _ in range(2)])
    y = torch.stack([y for i, part in enumerate(parts) for y in (part.y, random_labels(1000, 10, *seeded([i])))])
    starts = {}
    for width in REAL_EPOCHS:
        each = [gaussian_weights((64, width, 10), generator, dtype=dtype) for generator in seeded(range(MEMBERS))]
        starts[width] = [torch.stack(layer) for layer in zip(*each, strict=True)]
    fast, slow = ({width: [] for width in REAL_EPOCHS} for _ in range(2))
    halves = range(SEEDS), range(SEEDS, MEMBERS)

    def sweep():
        for width, weights in starts.items():
            begin = time.perf_counter()
            list(pool.map(lambda members, weights=weights: together(weights, x, y, members), halves))
            fast[width].append(time.perf_counter() - begin)

    benchmark.group = f"width sweep on digits, {EPOCHS} epochs, two threads"
    with ThreadPoolExecutor(2) as pool:
        benchmark.pedantic(sweep, rounds=5, warmup_rounds=1)
    for width, weights in starts.items():
        for _ in range(2):
            begin = time.perf_counter()
            for i, generator in enumerate(seeded(range(MEMBERS))):
                trained = plain([w[i] for w in weights], x[i], y[i], generator)
            slow[width].append(time.perf_counter() - begin)
        torch.testing.assert_close(trained[0], together(weights, x, y, halves[1])[0][-1], rtol=1e-3, atol=1e-4)

    # The best repetition of either: other processes only ever add time.
    fast, slow = ({width: min(times) for width, times in each.items()} for each in (fast, slow))
    ratios = {width: slow[width] / fast[width] for width in REAL_EPOCHS}
    whole = [sum(each[width] * sum(epochs) for width, epochs in REAL_EPOCHS.items()) for each in (slow, fast)]
    step = 1e6 * BATCH / (MEMBERS * EPOCHS * 1000)
    benchmark.extra_info["ratios"] = {**ratios, "whole": whole[0] / whole[1]}
    benchmark.extra_info["table"] = [
        f"{'width':>10}{'ensemble':>12}{'plain':>12}{'ratio':>8}   µs for a step of one member, 100 samples",
        *(f"{w:>10}{step * fast[w]:12.0f}{step * slow[w]:12.0f}{ratios[w]:7.1f}×" for w in REAL_EPOCHS),
        f"{'whole':>10}{'':24}{whole[0] / whole[1]:7.1f}×   widths weighted by the epochs that training takes",
    ]
