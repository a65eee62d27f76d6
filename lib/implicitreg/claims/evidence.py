"""What was measured for one claim: plain numbers that travel in the metadata of a notebook's output."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

MIME = "application/vnd.implicitreg.claim+json"


def _finite(values: Any) -> bool:
    if isinstance(values, list):
        return all(_finite(v) for v in values)
    return isinstance(values, (int, float)) and not isinstance(values, bool) and math.isfinite(values)


@dataclass(frozen=True)
class Evidence:
    """The samples of one claim and of its negative control.

    Attributes
    ----------
    id
        Full id of the claim.
    scale
        The scale at which it was recorded.
    samples, control
        One number per seed; where the rule is ``ordered``, one sequence per seed; where the statistic is
        ``slope``, pairs ``[x, y]``.
    """

    id: str
    scale: str
    samples: list[Any]
    control: list[Any]

    def to_json(self) -> dict[str, Any]:
        """Return the evidence as JSON data, in full precision."""
        return {"id": self.id, "scale": self.scale, "samples": self.samples, "control": self.control}

    @classmethod
    def from_json(cls, data: Any) -> "Evidence":
        """Read evidence back.

        Raises
        ------
        ValueError
            A field is missing or unknown, or a sample is no finite number.
        """
        if not isinstance(data, Mapping) or set(data) != {"id", "scale", "samples", "control"}:
            raise ValueError("evidence must have exactly the fields id, scale, samples and control")
        for name in ("samples", "control"):
            if not isinstance(data[name], list) or not data[name]:
                raise ValueError(f"evidence of {data['id']}: {name} must have at least one number")
            if not _finite(data[name]):
                raise ValueError(
                    f"evidence of {data['id']}: {name} must be finite numbers, none of them NaN or infinite"
                )
        return cls(str(data["id"]), str(data["scale"]), data["samples"], data["control"])


def recorded(notebook: Mapping[str, Any]) -> list[tuple[int, Evidence]]:
    """Return the evidence in a notebook's outputs.

    Parameters
    ----------
    notebook
        The notebook as plain JSON data.

    Returns
    -------
    list of (int, Evidence)
        Index of the cell, and what it recorded, in order.

    Raises
    ------
    ValueError
        Evidence that is not well formed.
    """

    def outputs() -> Iterator[tuple[int, Any]]:
        for index, cell in enumerate(notebook.get("cells", ())):
            for output in cell.get("outputs", ()):
                found = output.get("metadata", {}).get(MIME)
                if found is not None:
                    yield index, found

    return [(index, Evidence.from_json(found)) for index, found in outputs()]
