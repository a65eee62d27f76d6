"""Path norm, capacities, scales of Path-SGD and the width sweep against what one writes first."""

import copy
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from implicitreg.data import digits, random_labels, split
from implicitreg.dynamics import train_networks
from implicitreg.measures import capacities, path_norm
from implicitreg.nets import gaussian_weights, path_scales, perceptron

SIZES = (64, 256, 256, 10)


def network(*sizes, dtype=torch.float32):
    return perceptron(gaussian_weights(sizes, torch.Generator().manual_seed(0), dtype=dtype))


def powered(net, p=2):
    """Return a copy of a network with powers of its weights: how published code starts."""
    other = copy.deepcopy(net).eval()
    with torch.no_grad():
        for w in other.parameters():
            w.abs_().pow_(p)
    return other


def copied(net, p=2):
    """Copy the network, raise its weights, pass ones through it."""
    with torch.no_grad():
        return powered(net, p)(next(net.parameters()).new_ones(1, net[0].in_features)).sum().pow(1 / p)


def multiplied(net):
    """Multiply a row of ones by each matrix of squares: correct for a chain of matrices and nothing else."""
    with torch.no_grad():
        a = None
        for w in net.parameters():
            a = w.square().sum(1) if a is None else torch.mv(w.square(), a)
        return a.sum().sqrt()


def relative(expected):
    return lambda found: abs(float(found) / float(expected) - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_path_norm(compare, grow, dtype):
    net = network(*SIZES, dtype=dtype)

    def methods(net):
        return {"this library": lambda: path_norm(net), "copy, square, forward": lambda: copied(net)}

    with torch.no_grad():
        compare(
            f"path norm, 64-256×2-10, {str(dtype)[6:]}",
            {**methods(net), "products by hand": lambda: multiplied(net)},
            error=relative(copied(copy.deepcopy(net).double())),
        )
        if dtype == torch.float32:
            grow("path norm, in the width", (256, 512, 1024, 2048), lambda h: methods(network(64, h, h, 10)))


def test_capacities(compare):
    net = network(*SIZES)
    x = torch.randn(1000, 64, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(-1)

    @torch.no_grad()
    def formulas(net=net, x=x):
        """Each formula by itself, in plain torch."""
        z = net(x)
        own = z.gather(1, y[:, None])[:, 0]
        gamma = (own - z.scatter(1, y[:, None], -torch.inf).amax(1)).quantile(0.05)
        weights = list(net.parameters())
        l2 = torch.stack([torch.linalg.matrix_norm(w) for w in weights]).prod()
        spectral = torch.stack([torch.linalg.matrix_norm(w, 2) for w in weights]).prod()
        return (torch.stack([l2, copied(net, 1), copied(net), spectral]) / gamma).square()

    expected = formulas(copy.deepcopy(net).double(), x.double())

    def error(found):
        if not isinstance(found, torch.Tensor):
            found = torch.stack([found.l2, found.l1_path, found.l2_path, found.spectral])
        return (found / expected - 1).abs().max()

    compare(
        "four capacities, 64-256×2-10, float32",
        {"this library": lambda: capacities(net, x, y), "formulas one by one": formulas},
        error=error,
    )


def test_path_scales(compare):
    net = network(784, 1000, 1000, 10)

    def by_a_copy(net=net):
        """Copy the network, square its weights, pass ones through it and back."""
        other = powered(net)
        other(net[0].weight.new_ones(1, 784)).sum().backward()
        return [w.grad for w in other.parameters()]

    expected = by_a_copy(copy.deepcopy(net).double())

    def error(found):
        found = found.values() if isinstance(found, dict) else found
        return max(float((a / b - 1).abs().max()) for a, b in zip(found, expected, strict=True))

    compare(
        "Path-SGD's scales, 784-1000×2-10, float32",
        {"this library": lambda: path_scales(net), "copy, square, back": by_a_copy},
        error=error,
    )


# The width sweep

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


def test_width_sweep(benchmark, record):
    """9 widths × 8 seeds × true and random labels: two threads of ensembles, against one network after another."""
    parts = [split(digits(dtype=torch.float32), 1000, generator) for generator in seeded(range(SEEDS))]
    # Members 2 i and 2 i + 1 have true and random labels, so that either thread has as many of both.
    x = torch.stack([part.x for part in parts for _ in range(2)])
    y = torch.stack([y for i, part in enumerate(parts) for y in (part.y, random_labels(1000, 10, *seeded([i])))])
    starts = {}
    for width in REAL_EPOCHS:
        each = [
            gaussian_weights((64, width, 10), generator, dtype=torch.float32) for generator in seeded(range(MEMBERS))
        ]
        starts[width] = [torch.stack(layer) for layer in zip(*each, strict=True)]
    fast, slow, apart = {}, {}, []
    halves = range(SEEDS), range(SEEDS, MEMBERS)

    def timed(best, width, run):
        begin = time.perf_counter()
        found = run()
        best[width] = min(best.get(width, torch.inf), time.perf_counter() - begin)
        return found

    def sweep():
        for width, weights in starts.items():
            ensembles = timed(
                fast, width, lambda w=weights: list(pool.map(lambda members: together(w, x, y, members), halves))
            )
            alone = timed(
                slow,
                width,
                lambda w=weights: [
                    plain([a[i] for a in w], x[i], y[i], g) for i, g in enumerate(seeded(range(MEMBERS)))
                ],
            )
            apart.append(max(float((a[-1] - b).abs().max()) for a, b in zip(ensembles[1], alone[-1], strict=True)))

    with ThreadPoolExecutor(2) as pool:
        benchmark.pedantic(sweep, rounds=2, warmup_rounds=0)
    assert max(apart) < 1e-3
    names = "this library, 2 threads", "one after another"
    step = BATCH / (MEMBERS * EPOCHS * 1000)
    for width in (4, 64, 1024):
        job = f"step of a network of width {width:,}, float32"
        record(job, names[0], dict(zip(names, (step * fast[width], step * slow[width]), strict=True)), {})
    whole = [sum(each[w] * sum(epochs) for w, epochs in REAL_EPOCHS.items()) / 2 / EPOCHS for each in (fast, slow)]
    job = "9 widths × 16 networks on digits, float32"
    record(job, names[0], dict(zip(names, whole, strict=True)), {})
