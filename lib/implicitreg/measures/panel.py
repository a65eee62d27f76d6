"""Every measure of a network at once, as a table."""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from html import escape
from io import StringIO
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from implicitreg import checks
from implicitreg.citations import SOURCES, bibtex, short
from implicitreg.dynamics.losses import cross_entropy
from implicitreg.measures.capacity import capacities_at, margins_of, quantile_of, scores
from implicitreg.measures.complexity import geometric_complexity
from implicitreg.measures.flatness import Loss, each_loss, expected_sharpness, pac_bayes_kl, pac_bayes_kl_at, sharpness
from implicitreg.measures.hessian import hessian_eigenvalues, hessian_trace
from implicitreg.measures.layerwise import layer_norms
from implicitreg.measures.norms import path_norm
from implicitreg.measures.running import run, some
from implicitreg.measures.segment_samples import sampled_straightness
from implicitreg.nets import layers as ly
from implicitreg.nets.perceptron import as_module
from implicitreg.seeding import generators

if TYPE_CHECKING:
    import pandas
    from rich.console import Console, ConsoleOptions, RenderResult

Custom = Callable[[ly.Network, Tensor, Tensor], Any]
"""A measure of the user's own: takes model, inputs and classes, returns a number."""

ALPHA = 5e-4
"""Size of the box of the maximum sharpness."""

SPREAD = 1e-3
"""Size of the perturbations of the expected sharpness."""

_LAYER = ("layer", "spectral norm", "Frobenius norm", "stable rank", "effective rank")


@dataclass(frozen=True)
class Measured:
    """A number of a report.

    Attributes
    ----------
    name
        What was measured, such as ``"path norm: l2"``; by layer, such as ``"spectral norm: fc1"``.
    value
        NaN where it is not defined, infinite where a bound is void.
    standard_error
        Over what was drawn: samples, perturbations, pairs, probes. None where nothing was.
    cost
        What it took, in passes over the network.
    note
        What must be known to trust it: samples left out, iterations that did not converge.
    keys
        Its papers in the bibliography.
    seconds
        Time of the group of measures that it was computed with.
    layer
        The layer it belongs to, or None.
    """

    name: str
    value: float
    standard_error: float | None = None
    cost: str = ""
    note: str = ""
    keys: tuple[str, ...] = ()
    seconds: float = math.nan
    layer: str | None = None

    @property
    def source(self) -> str:
        """The papers, as a text cites them."""
        return "; ".join(map(short, self.keys))


@dataclass(frozen=True)
class _Case:
    """A network, its data, its scores of them, and how much may be spent on one measure."""

    model: ly.Network
    x: Tensor
    y: Tensor
    loss: Loss
    z: Tensor
    flops: float
    work: float
    generator: torch.Generator

    @property
    def margin(self) -> Tensor:
        return quantile_of(margins_of(self.z, self.y), 0.05)

    def within(self, share: float, repeats: int, passes: float) -> tuple[Tensor, Tensor, int, str]:
        """Return samples, repetitions and a remark: as many as cost this share of the work, or nearly.

        Some ``passes`` forward passes over the samples are repeated. First there are fewer samples, then, down to a
        quarter, fewer repetitions.
        """
        n = len(self.x)
        room = share * self.work / (passes * self.flops)
        m = max(_FEWEST, math.floor(min(n, room / repeats)))
        repeats = max(repeats // 4, math.floor(min(repeats, room / min(m, n))))
        if m >= n:
            return self.x, self.y, repeats, ""
        drawn = torch.randperm(n, generator=self.generator)[:m].to(self.x.device)
        return self.x[drawn], self.y[drawn.to(self.y.device)], repeats, f"of {m:,} of {n:,} samples, drawn once"


# Fewest samples; steps of the ascent; perturbations, and those at each α that PAC-Bayes tries; products with the
# Hessian, at most and at least; and how many of its eigenvalues.
_FEWEST, _STEPS, _PERTURBED, _DRAWS, _PRODUCTS, _LEAST, _EIGENVALUES = 8, 200, 50, 20, 100, 32, 2


def _loss(case: _Case) -> Iterator[Measured]:
    for name, each in (
        ("loss", case.loss(case.z, case.y)),
        ("error rate", (case.z.argmax(-1) != case.y).to(torch.float64)),
    ):
        yield Measured(name, float(each.mean()), _standard_error(each), "1 forward pass")


def _standard_error(values: Tensor) -> float | None:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else None


def _margin(case: _Case) -> Iterator[Measured]:
    yield Measured("margin", float(case.margin), cost="1 forward pass", note="5th percentile")


def _shape(case: _Case) -> tuple[int, ...] | None:
    return tuple(case.x.shape[1:]) if isinstance(case.model, nn.Module) else None


def _capacities(case: _Case) -> Iterator[Measured]:
    found = capacities_at(case.model, case.margin, _shape(case))
    for name in ("l2", "l1-path", "l2-path", "spectral"):
        value = float(getattr(found, _attribute(name)))
        yield Measured(f"capacity: {name}", value, cost="1 forward pass, singular values")


def _path_norms(case: _Case) -> Iterator[Measured]:
    for p in (1, 2):
        value = path_norm(case.model, p, input_shape=_shape(case)).detach()
        yield Measured(f"path norm: l{p}", float(value), cost="1 pass of one input")
    ly.unhooked(case.model)


def _layers(case: _Case) -> Iterator[Measured]:
    norms = layer_norms(case.model, input_shape=_shape(case))
    ly.unhooked(case.model)
    for layer in norms:
        for name in _LAYER[1:]:
            value = float(getattr(layer, _attribute(name.removesuffix(" norm"))))
            yield Measured(f"{name}: {layer.name}", value, cost="singular values", layer=layer.name)


def _sharpness(case: _Case) -> Iterator[Measured]:
    x, y, steps, note = case.within(0.25, _STEPS, 3)
    value = float(sharpness(case.model, x, y, ALPHA, steps=steps, loss=case.loss))
    yield Measured("sharpness", value, cost=f"{steps} gradients", note=_joined("from below", note))


def _expected_sharpness(case: _Case) -> Iterator[Measured]:
    x, y, draws, note = case.within(0.05, _PERTURBED, 1)
    found = expected_sharpness(case.model, x, y, SPREAD, case.generator, draws=draws, loss=case.loss)
    cost = f"{draws + 1} forward passes"
    yield Measured("expected sharpness", float(found.value), float(found.standard_error), cost, note)


def _pac_bayes(case: _Case) -> Iterator[Measured]:
    x, y, draws, note = case.within(0.2, _DRAWS, 19)
    state = case.generator.get_state()
    kl = float(pac_bayes_kl_at(case.model, x, y, case.generator, draws=draws, loss=case.loss))
    # Where the draws are those of α, their error in the expected sharpness, over its slope in ln α, is that of ln α;
    # the measure is inversely proportional to α².
    alpha = math.sqrt(float(pac_bayes_kl(case.model, 1.0)) / kl) if kl > 0 else math.nan
    error = math.nan
    if math.isfinite(alpha):
        near = []
        for factor in (1, 1.1):
            case.generator.set_state(state)
            near.append(
                expected_sharpness(case.model, x, y, factor * alpha, case.generator, draws=draws, loss=case.loss)
            )
        at, above = near
        slope = math.log(float(above) / float(at)) / math.log(1.1)
        error = 2 * kl * float(at.standard_error) / (float(at) * slope)
    yield Measured("PAC-Bayes KL", kl, error, f"{19 * draws} forward passes", note)


def _quietly(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a routine that warns of what its result tells too, with advice that no reader of a report can take."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return function(*arguments, **options)


def _eigenvalues(case: _Case) -> Iterator[Measured]:
    x, y, most, note = case.within(0.2, _PRODUCTS, 6)
    found = _quietly(hessian_eigenvalues, case.model, case.loss, x, y, k=_EIGENVALUES, max_products=max(most, _LEAST))
    note = _joined(note, "" if found.converged else "not all have converged")
    for i, value in enumerate(found.values.tolist(), start=1):
        yield Measured(f"Hessian eigenvalue {i}", value, cost=f"{found.products} Hessian products", note=note)


def _trace(case: _Case) -> Iterator[Measured]:
    x, y, most, note = case.within(0.2, _PRODUCTS, 6)
    found = _quietly(hessian_trace, case.model, case.loss, x, y, case.generator, max_products=max(most, _LEAST))
    note = _joined(note, "" if found.converged else "s.e. above 5 %")
    cost = f"{found.products} Hessian products"
    yield Measured("Hessian trace", float(found.value), float(found.standard_error), cost, note)


def _straightness(case: _Case) -> Iterator[Measured]:
    found = sampled_straightness(case.model, case.x, case.generator)
    ly.unhooked(case.model)
    how = f"{found.pairs} pairs of samples"
    note = "" if found.exact else "parts of their segments"
    for name in ("breakpoints", "gap deviation", "deflection", "non-straightness"):
        estimate = getattr(found, _attribute(name))
        yield Measured(name, estimate.value, estimate.standard_error, how, note)


def _complexity(case: _Case) -> Iterator[Measured]:
    x, _, _, note = case.within(0.1, 1, 3 * case.z.shape[-1])
    found = geometric_complexity(case.model, x)
    yield Measured("geometric complexity", found.value, found.standard_error, "1 gradient an output", note)


Compute = Callable[[_Case], Iterator[Measured]]

# The order is that of the generators too: what is added later comes last.
_PANEL: dict[str, tuple[Compute, str | None]] = {
    "loss": (_loss, None),
    "margin": (_margin, "margin"),
    "capacities": (_capacities, "capacities"),
    "path norms": (_path_norms, "path_norm"),
    "layers": (_layers, "layer_norms"),
    "sharpness": (_sharpness, "sharpness"),
    "expected sharpness": (_expected_sharpness, "expected_sharpness"),
    "PAC-Bayes": (_pac_bayes, "pac_bayes_kl_at"),
    "Hessian eigenvalues": (_eigenvalues, "hessian_eigenvalues"),
    "Hessian trace": (_trace, "hessian_trace"),
    "straightness": (_straightness, "sampled_straightness"),
    "geometric complexity": (_complexity, "geometric_complexity"),
}
"""What a report holds, in this order: how it is computed, and the routine whose papers it cites."""


def _attribute(name: str) -> str:
    return name.lower().replace(" ", "_").replace("-", "_")


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))


@dataclass(frozen=True, repr=False)
class Report:
    """What `report` returns: a table in a terminal and in a notebook, numbers for a program.

    Indexing by a name, such as ``report["path norm: l2"]``, gives a `Measured`; iterating gives all of them.

    Attributes
    ----------
    network
        What was measured, in words.
    samples
        How many inputs.
    measured
        The numbers, in order.
    refused
        Measures that this network or these data do not have, each with the reason.
    """

    network: str
    samples: int
    measured: tuple[Measured, ...]
    refused: dict[str, str]

    def __getitem__(self, name: str) -> Measured:
        """Return one number by its name."""
        for each in self.measured:
            if each.name == name:
                return each
        raise KeyError(f"name: must be one of {', '.join(each.name for each in self.measured)}, got {name!r}")

    def __iter__(self) -> Iterator[Measured]:
        return iter(self.measured)

    def __len__(self) -> int:
        """Return how many numbers there are."""
        return len(self.measured)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain Python data."""
        rows = [{**asdict(each), "keys": list(each.keys), "source": each.source} for each in self.measured]
        return {
            "network": self.network,
            "samples": self.samples,
            "measured": rows,
            "refused": dict(self.refused),
        }

    def to_frame(self) -> "pandas.DataFrame":
        """Return the numbers as a pandas data frame, a row each, by name.

        Raises
        ------
        ModuleNotFoundError
            pandas, which this package does not need otherwise, is not installed.
        """
        import pandas

        return pandas.DataFrame(self.to_dict()["measured"]).set_index("name")

    def bibtex(self) -> str:
        """Return the BibTeX entries of all papers in the table."""
        return bibtex(key for each in self.measured for key in each.keys)

    @property
    def title(self) -> str:
        """What was measured on what."""
        return f"{self.network} on {self.samples:,} sample{'s' if self.samples > 1 else ''}"

    def _rows(self) -> list[tuple[str, ...]]:
        """Return the table of what belongs to the whole network, as text."""
        rows: list[tuple[str, ...]] = []
        said = ""
        for each in self.measured:
            if each.layer is None:
                error = "" if each.standard_error is None else f"{each.standard_error:.2g}"
                # A note of a line or more is told once.
                note = "see above" if each.note == said and len(said) > 40 else each.note
                said = each.note
                rows.append((each.name, f"{each.value:.4g}", error, _joined(each.cost, note), each.source))
        return rows

    def _layers(self) -> list[tuple[str, ...]]:
        """Return the table by layer, as text."""
        found: dict[str, list[str]] = {}
        for each in self.measured:
            if each.layer is not None:
                found.setdefault(each.layer, []).append(f"{each.value:.4g}")
        return [(layer, *values) for layer, values in found.items()]

    def _tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
        """Return the heads and rows of the tables that are not empty."""
        heads = (("measure", "value", "± s.e.", "by", "source"), _LAYER)
        return [(head, rows) for head, rows in zip(heads, (self._rows(), self._layers()), strict=True) if rows]

    def _reasons(self) -> list[tuple[str, str]]:
        """Return what was not measured by its reason, each told once."""
        found: dict[str, list[str]] = {}
        for name, reason in self.refused.items():
            found.setdefault(reason, []).append(name)
        return [(", ".join(names), reason) for reason, names in found.items()]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        from rich import box
        from rich.table import Table
        from rich.text import Text

        yield Text(self.title, style="bold")
        for head, rows in self._tables():
            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for i, column in enumerate(head):
                numbers = column in ("value", "± s.e.") or (head is _LAYER and i > 0)
                table.add_column(column, justify="right" if numbers else "left", no_wrap=numbers or i == 0)
            for row in rows:
                table.add_row(*map(Text, row))
            yield table
        for names, reason in self._reasons():
            yield Text(f"not measured: {names}: {reason}", style="yellow")

    def __repr__(self) -> str:
        # Beside the HTML in a notebook, and the same twice: without seconds.
        return str(self)

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        Console(file=text, width=110, color_system=None, force_jupyter=False).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())

    def _repr_html_(self) -> str:
        parts = [f"<p><strong>{escape(self.title)}</strong></p>"]
        for head, rows in self._tables():
            cells = "".join(f"<th>{escape(column)}</th>" for column in head)
            body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
            parts.append(f'<table class="dataframe"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>')
        parts += [f"<p>not measured: {escape(names)}: {escape(reason)}</p>" for names, reason in self._reasons()]
        return "".join(parts)


def report(
    model: ly.Network,
    x: Tensor,
    y: Tensor,
    *,
    measures: Iterable[str | Custom] | None = None,
    loss: Loss = cross_entropy,
    seed: int = 0,
    work: float = 1.5e12,
) -> Report:
    r"""Measure a network in every way that this library knows, or in some.

    ============================  ===================================================================================
    ``measures``                  what is reported
    ============================  ===================================================================================
    ``"loss"``                    mean loss and error rate
    ``"margin"``                  `margin`, the 5th percentile
    ``"capacities"``              the four `capacities`, without factors
    ``"path norms"``              `path_norm` for p = 1 and 2
    ``"layers"``                  `layer_norms`: spectral and Frobenius norm, stable and effective rank of each layer
    ``"sharpness"``               `sharpness` with α = 5e-4
    ``"expected sharpness"``      `expected_sharpness` with α = 1e-3
    ``"PAC-Bayes"``               `pac_bayes_kl_at` an expected sharpness of 0.05
    ``"Hessian eigenvalues"``     `hessian_eigenvalues`, the two largest
    ``"Hessian trace"``           `hessian_trace`
    ``"straightness"``            `sampled_straightness`: gradient gap deviation and deflection between samples
    ``"geometric complexity"``    `geometric_complexity`
    ============================  ===================================================================================

    The network is measured in evaluation mode and left as it was: parameters, gradients, buffers, mode, and the state
    of torch's random generators.

    Parameters
    ----------
    model
        A module with outputs ``(n, k)``, k >= 2, or the weight matrices of one network without biases. Norms and
        straightness need supported layers; other networks have all the other measures.
    x
        Inputs, shape ``(n, ...)``, float32 or float64: those that the network was trained on.
    y
        Classes, shape ``(n,)``, int64.
    measures
        Names out of the table, and functions of ``(model, x, y)`` that return a number, which enter by their own
        names. By default all of the table; what the network does not have is then listed with the reason.
    loss
        Loss of each sample, from scores ``(n, k)`` and classes.
    seed
        Of all draws, >= 0. Each measure has a generator of its own, so that leaving some out changes no other.
    work
        About how many floating-point operations the whole report may take; double precision counts twice. Where
        a measure that passes over the data hundreds of times would take more than its share, it is computed on
        samples drawn for it, and of large networks with fewer steps, perturbations or products: its row tells.
        ``math.inf`` sets no limit.

    Returns
    -------
    Report

    Raises
    ------
    TypeError, ValueError
        An argument is not as it must be, the outputs are not finite, a name is not in the table, or a measure that
        was named is not to be had of this network.

    Notes
    -----
    Warnings of the measures stand in the notes of their rows. Standard errors leave out which samples were drawn for
    a row. Cost: with the default work about a minute on two cores
    for a network of convolutions, seconds for a perceptron on a thousand inputs.

    Examples
    --------
    >>> weights = [2 * torch.eye(2), torch.eye(2)]
    >>> found = report(weights, torch.eye(2), torch.tensor([0, 1]), measures=["margin", "path norms"])
    >>> {each.name: round(each.value, 4) for each in found}
    {'margin': 2.0, 'path norm: l1': 4.0, 'path norm: l2': 2.8284}
    >>> found["path norm: l2"].source
    'Neyshabur et al. 2015'
    """
    chosen = _chosen(measures)
    each = generators(checks.integer(seed, "seed", 0), len(_PANEL))
    work = checks.positive(work, "work", infinite=True)
    module = as_module(model)
    z = scores(model, x, y)
    each_loss(loss, z, y)
    flops = _flops(module, x)
    measured: list[Measured] = []
    refused: dict[str, str] = {}
    for name, compute in chosen.items():
        generator = each[list(_PANEL).index(name)] if name in _PANEL else torch.Generator()
        start = time.perf_counter()
        try:
            found, notes = _listened(compute, _Case(model, x, y, loss, z, flops, work, generator))
        except (TypeError, ValueError) as error:
            if measures is not None:
                raise
            refused[name] = str(error)
            continue
        seconds = time.perf_counter() - start
        routine = _PANEL[name][1] if name in _PANEL else None
        keys = SOURCES[routine] if routine else ()
        measured += [replace(number, note=_joined(number.note, notes), keys=keys, seconds=seconds) for number in found]
    return Report(_words(model), len(x), tuple(measured), refused)


def _chosen(measures: Iterable[str | Custom] | None) -> dict[str, Compute]:
    """Return what is to be computed, by name."""
    if measures is None:
        return {name: compute for name, (compute, _) in _PANEL.items()}
    if isinstance(measures, str) or not isinstance(measures, Iterable):
        raise TypeError(f"measures: must be a list of names and functions, got {measures!r}")
    chosen: dict[str, Compute] = {}
    for each in measures:
        name = getattr(each, "__name__", type(each).__name__) if callable(each) else each
        if not callable(each) and name not in _PANEL:
            raise ValueError(f"measures: must be some of {', '.join(_PANEL)}, or functions, got {each!r}")
        if name in chosen or (callable(each) and name in _PANEL):
            raise ValueError(f"measures: must have different names, got {name!r} twice")
        chosen[name] = _custom(each) if callable(each) else _PANEL[name][0]
    if not chosen:
        raise ValueError("measures: must hold at least one")
    return chosen


def _custom(function: Custom) -> Compute:
    name = getattr(function, "__name__", type(function).__name__)

    def compute(case: _Case) -> Iterator[Measured]:
        if isinstance(case.model, nn.Module):
            with ly.evaluation(case.model, random=True):
                value = function(case.model, case.x, case.y)
        else:
            value = function(case.model, case.x, case.y)
        try:
            yield Measured(name, float(value))
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"measures: {name} must return a number, got {type(value).__name__}") from None

    return compute


def _listened(compute: Compute, case: _Case) -> tuple[list[Measured], str]:
    """Compute, and return what was warned of beside the numbers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = list(compute(case))
    return found, _joined(*dict.fromkeys(str(warning.message) for warning in caught))


def _flops(model: nn.Module, x: Tensor) -> float:
    """Return about how many operations one sample takes to pass through a network, in single precision."""
    from torch.utils.flop_counter import FlopCounterMode

    few = some(x)
    with torch.no_grad(), ly.evaluation(model), FlopCounterMode(display=False) as counter:
        run(model, x.detach()[few])
    return max(float(counter.get_total_flops()) / len(few), 1e4) * (2 if x.dtype == torch.float64 else 1)


def _words(model: ly.Network) -> str:
    """Return what a network is."""
    if isinstance(model, nn.Module):
        return f"{type(model).__name__} of {sum(w.numel() for w in model.parameters()):,} parameters"
    sizes = "-".join(str(size) for size in (model[0].shape[-1], *(w.shape[-2] for w in model)))
    return f"{sizes} of {sum(w.numel() for w in model):,} weights"
