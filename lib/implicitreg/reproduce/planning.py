"""What a run has to do, checked before anything is run or written."""

import ast
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from implicitreg.reproduce.execution import as_node
from implicitreg.reproduce.fingerprint import Fingerprint, changes, fingerprint, sealed_cost, surroundings
from implicitreg.reproduce.project import CommandError, Notebook, Project, UsageError, listed, read_notebook
from implicitreg.reproduce.runs import executed, read_chapters, slug

STANDARD = ("scale", "seed", "device")  # every notebook has these parameters


@dataclass(frozen=True)
class Settings:
    """What a user can turn: the parameters of a run."""

    scale: str = "book"
    seed: int = 0
    device: str = "auto"
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        """All parameters by name."""
        return {"scale": self.scale, "seed": self.seed, "device": self.device, **self.extra}

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return slug(self.scale, self.seed, self.extra)


@dataclass(frozen=True)
class Step:
    """One notebook of a run.

    Attributes
    ----------
    notebook, content
        The notebook, and its content as plain JSON data.
    prints
        Its fingerprint in this run.
    inject
        The parameters whose value is not the notebook's own.
    because
        Why it is executed; empty where the finished one is reused.
    expected
        The ``seconds`` and the ``memory`` in MB that it took before, else those that its chapter declares.
    declared
        The seconds that its chapter declares.
    """

    notebook: Notebook
    content: dict[str, Any]
    prints: Fingerprint
    inject: Mapping[str, Any]
    because: Sequence[str]
    expected: Mapping[str, float] = field(default_factory=dict)
    declared: float | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Parameters


_UNKNOWN = object()


def declared(notebook: Notebook, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that a notebook declares, with its own values."""
    import papermill

    # What papermill cannot parse is no parameter; it need not say so.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    found = {}
    for name, parameter in papermill.inspect_notebook(as_node(content)).items():
        try:
            found[name] = ast.literal_eval(parameter["default"])
        except (ValueError, SyntaxError):
            found[name] = _UNKNOWN
    missing = [name for name in STANDARD if name not in found]
    if missing:
        raise CommandError(f"{notebook.name}: no parameter {missing[0]!r} in a cell tagged 'parameters'")
    return found


def _injected(notebook: Notebook, content: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Return the parameters to inject: a run that turns nothing looks exactly like the recorded notebook."""
    own = declared(notebook, content)
    for name in settings.extra:
        if name not in own:
            raise UsageError(f"{notebook.name} has no parameter {name!r}; it has: {listed(sorted(own))}")
    wanted = settings.parameters
    return {name: value for name, value in wanted.items() if (type(value), value) != (type(own[name]), own[name])}


# ---------------------------------------------------------------------------------------------------------------------
# Planning


class Plan:
    """What a run has to do, checked before anything is run or written.

    Parameters
    ----------
    project, notebooks, settings
        Which notebooks to run, and how.
    output
        The folder of all runs.
    fresh
        Execute everything, whatever is there.

    Raises
    ------
    CommandError
        A notebook cannot be read or lacks a parameter (`UsageError` where the user asked for one it has not).
    """

    def __init__(
        self,
        project: Project,
        notebooks: Sequence[Notebook],
        settings: Settings,
        *,
        output: Path | None = None,
        fresh: bool = False,
    ) -> None:
        self.project, self.settings, self.fresh = project, settings, fresh
        self.folder = (output or project.runs).absolute() / settings.name
        self._files = read_chapters(project)  # a malformed one is told now, not after the notebooks have run
        self._contents = {notebook: notebook.read() for notebook in notebooks}
        self._inject = {n: _injected(n, content, settings) for n, content in self._contents.items()}
        self.shared = surroundings(project)

    def _declared(self, notebook: Notebook) -> dict[str, float]:
        """Return the seconds and the memory that a notebook's chapter declares for this scale."""
        cost = self._files[notebook.chapter].notebooks.get(notebook.path.stem)
        told = {} if cost is None else {"seconds": cost.seconds, "memory": cost.memory}
        scale = self.settings.scale
        return {name: by_scale[scale] for name, by_scale in told.items() if scale in by_scale}

    def _prints(self, notebook: Notebook, content: Mapping[str, Any]) -> Fingerprint:
        return fingerprint(notebook, content, self.settings.parameters, self.shared)

    @cached_property
    def steps(self) -> list[Step]:
        """One step a notebook, by what lies in the run's folder now."""
        steps = []
        for notebook, content in self._contents.items():
            prints = self._prints(notebook, content)
            before = read_notebook(executed(self.folder, notebook.name))
            because = changes(before, prints)
            if self.fresh and not because:
                because = ["asked for"]
            declared = self._declared(notebook)
            expected = declared | sealed_cost(before)
            steps.append(
                Step(notebook, content, prints, self._inject[notebook], because, expected, declared.get("seconds"))
            )
        return steps

    def finished(self) -> dict[str, dict[str, Any]]:
        """Return every notebook in the run's folder that belongs to this book, library and settings."""
        found = {}
        for name, notebook in self.project.notebooks.items():
            content = read_notebook(executed(self.folder, name))
            if content is None:
                continue
            source = self._contents.get(notebook) or notebook.read()
            if not changes(content, self._prints(notebook, source)):
                found[name] = content
        return found
