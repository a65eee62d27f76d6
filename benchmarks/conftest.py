"""One thread for every benchmark; a library's routine and its alternatives timed by turns, in rows for the dashboard.

A benchmark leaves in ``benchmark.extra_info``

- ``rows``: a dictionary a method, with ``job``, ``method``, ``seconds`` (best of n; None where it is not installed),
  ``ratio`` to the time of the library's routine, ``error`` (None where nothing can be missed) and ``ours``;
- ``growth``: a dictionary a method that was timed at several sizes, with ``job``, ``method``, ``size``, ``seconds`` and
  the ``exponent`` fitted to their logarithms.
"""

import math
import time
from timeit import Timer

import numpy as np
import pytest
import torch

# Calls that take less are repeated until they take this long together, in seconds.
_BURST = 2e-3
_ROUNDS = 50


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def seconds():
    """Return a timer; other processes only ever add time."""

    def best(repetitions, run, *arguments):
        """Return the best time of some repetitions, and the result."""
        least = math.inf
        for _ in range(repetitions):
            start = time.perf_counter()
            result = run(*arguments)
            least = min(least, time.perf_counter() - start)
        return least, result

    return best


def best_times(methods, budget):
    """Return the best time of each method and its first result; the methods take turns until each has had its seconds.

    Each runs at least twice, since the first run may compile something.
    """
    best, results, plans = {}, {}, {}
    for name, run in methods.items():
        start = time.perf_counter()
        results[name] = run()
        first = time.perf_counter() - start
        timer, calls = Timer(run), 1
        took = timer.timeit(1)
        best[name] = min(first, took)
        while took < _BURST:
            calls *= 4
            took = timer.timeit(calls)
            best[name] = min(best[name], took / calls)
        plans[name] = timer, calls, min(_ROUNDS, int(budget / took))
    for turn in range(max(rounds for *_, rounds in plans.values())):
        for name, (timer, calls, rounds) in plans.items():
            if turn < rounds:
                best[name] = min(best[name], timer.timeit(calls) / calls)
    return best, results


@pytest.fixture
def compare(benchmark):
    """Return a function that times the library's routine against alternatives."""

    def compare(job, methods, *, per=None, error=None, budget=1.0):
        """Add the rows of a job: once in a benchmark.

        ``methods`` are functions without arguments by their names, the library's own first; None is what is not
        installed. ``per`` says how many units of the job one call does, where that is not 1; ``error`` how far off a
        result is.
        """
        installed = {name: run for name, run in methods.items() if run is not None}
        ours = next(iter(methods))
        benchmark.group = job
        benchmark.pedantic(methods[ours])  # once: the tables below are made of times taken by turns
        best, results = best_times(installed, budget)
        best = {name: took / (per or {}).get(name, 1) for name, took in best.items()}
        errors = {name: float(error(found)) for name, found in results.items()} if error else {}
        tell(benchmark, job, ours, {name: best.get(name) for name in methods}, errors)

    return compare


def tell(benchmark, job, ours, best, errors):
    """Add the rows of a job: best times and errors of its methods."""
    benchmark.extra_info.setdefault("rows", []).extend(
        {
            "job": job,
            "method": name,
            "seconds": took,
            "ratio": None if took is None else took / best[ours],
            "error": errors.get(name),
            "ours": name == ours,
        }
        for name, took in best.items()
    )


@pytest.fixture
def record(benchmark):
    """Return a function that adds the rows of a job whose times were taken elsewhere: see `tell`."""
    return lambda *arguments: tell(benchmark, *arguments)


@pytest.fixture
def grow(benchmark):
    """Return a function that times methods at several sizes and fits how their times grow."""

    def grow(job, sizes, methods, *, budget=0.5):
        """``methods`` takes a size and returns the methods that are timed there, as for `compare`."""
        times = {}
        for size in sizes:
            for name, took in best_times(methods(size), budget)[0].items():
                times.setdefault(name, {})[size] = took
        told = benchmark.extra_info.setdefault("growth", [])
        for name, each in times.items():
            size, took = list(each), list(each.values())
            exponent = float(np.polyfit(np.log(size), np.log(took), 1)[0])
            told.append({"job": job, "method": name, "size": size, "seconds": took, "exponent": exponent})

    return grow


def pytest_terminal_summary(terminalreporter, config):
    """Print rows and growth of the benchmarks that ran."""
    session = getattr(config, "_benchmarksession", None)
    told = [b.extra_info for b in (session.benchmarks if session else [])]
    rows = [row for info in told for row in info.get("rows", ())]
    growth = [entry for info in told for entry in info.get("growth", ())]
    for job in dict.fromkeys(row["job"] for row in rows):
        terminalreporter.section(job)
        for row in (row for row in rows if row["job"] == job):
            if row["seconds"] is None:
                terminalreporter.write_line(f"{row['method']:>32}  not installed")
                continue
            off = "" if row["error"] is None else f"   off by {row['error']:.1e}"
            terminalreporter.write_line(f"{row['method']:>32}{row['seconds']:12.3e} s{row['ratio']:10.2f}×{off}")
    if growth:
        terminalreporter.section("growth: exponents fitted to logarithms")
        for e in growth:
            terminalreporter.write_line(f"{e['job']}, {e['method']}: {e['exponent']:.2f}")
