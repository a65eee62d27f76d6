"""One thread for every benchmark; after the table of times, cost per seed and step, and ratio to the alternative."""

import math
import time

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seconds():
    """Return a timer for what is compared outside the table: other processes only ever add time."""

    def best(repetitions, run, *arguments):
        """Return the best time of some repetitions, and the result."""
        least = math.inf
        for _ in range(repetitions):
            start = time.perf_counter()
            result = run(*arguments)
            least = min(least, time.perf_counter() - start)
        return least, result

    return best


def pytest_terminal_summary(terminalreporter, config):
    """Print the tables that benchmarks made, and microseconds per seed and step of those that count them."""
    session = getattr(config, "_benchmarksession", None)
    run = [b for b in (session.benchmarks if session else []) if b.stats.rounds]
    for b in run:
        if "table" in b.extra_info:
            terminalreporter.section(f"{b.name}: {b.group}")
            for line in b.extra_info["table"]:
                terminalreporter.write_line(line)
    counted = [b for b in run if "steps" in b.extra_info]
    cost = {b.name: b.stats.median / b.extra_info["steps"] / b.extra_info["seeds"] * 1e6 for b in counted}
    if not cost:
        return
    terminalreporter.section("cost per seed and step")
    plain = {b.name: cost.get(b.extra_info.get("alternative", "test_plain_loop")) for b in counted}
    width = max(map(len, cost)) + 2
    for name, micros in cost.items():
        ratio = f"{plain[name] / micros:8.1f}× the plain loop's speed" if plain[name] else ""
        terminalreporter.write_line(f"{name:<{width}}{micros:10.3f} µs{ratio}")
