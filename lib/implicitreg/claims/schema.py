"""The claims of a paper, as `claims.yml` states them, validated."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from implicitreg.claims.rules import Rule
from implicitreg.claims.statistics import FEWEST

Scale = Literal["smoke", "book", "paper"]
SCALES: tuple[Scale, ...] = ("smoke", "book", "paper")
Verdict = Literal["reproduced", "reproduced in direction", "not reproduced", "differs", "unguarded", "not run"]


class ClaimError(ValueError):
    """A claim, or what was recorded for it, is not as it must be; the message names what and where."""


class Published(BaseModel):
    """The value in the paper: kept apart from what we measure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float | str | None = None
    unit: str | None = None
    origin: str | None = Field(default=None, alias="from")


class Control(BaseModel):
    """The negative control: what breaks the claim, so that the rule must reject it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str = Field(min_length=1)


class Claim(BaseModel):
    """One claim: what the paper says, and what would count as reproducing it.

    ``seeds``, ``accept`` and ``published`` are mappings from scale to what holds there; a file may state them
    once for all scales.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str
    key: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    paper: str = Field(min_length=1)
    number: str = Field(min_length=1)
    statement: str = Field(min_length=1)
    locator: str | None
    source: Literal["paper", "author", "secondary", "recalled", "derived", "measured"]
    kind: Literal["identity", "bound", "rate", "order", "value", "distribution"]
    published: dict[str, Published]
    measure: str = Field(min_length=1)
    scales: tuple[Scale, ...] = Field(min_length=1)
    seeds: dict[str, Annotated[int, Field(ge=1, strict=True)]]
    accept: dict[str, Rule]
    direction: Rule | None = None
    control: Control
    expected: Verdict

    @property
    def id(self) -> str:
        """The full id, ``<folder>.<key>``."""
        return f"{self.folder}.{self.key}"

    @model_validator(mode="before")
    @classmethod
    def _spread(cls, data: Any) -> Any:
        """Give every scale its own seeds, rule and published value where the file states one for all."""
        if not isinstance(data, Mapping) or not isinstance(data.get("scales"), (list, tuple)):
            return data
        data = dict(data)
        for name in ("seeds", "accept", "published"):
            given = data.get(name, {} if name == "published" else None)
            if given is None:
                continue
            if not (isinstance(given, Mapping) and set(given) & set(SCALES)):
                data[name] = dict.fromkeys(data["scales"], given)
            elif unknown := set(given) - set(SCALES):
                raise ValueError(f"'{name}' names {sorted(map(str, unknown))[0]!r}, which is no scale")
        return data

    @model_validator(mode="after")
    def _complete(self) -> "Claim":
        if len(set(self.scales)) < len(self.scales):
            raise ValueError("'scales' names a scale twice")
        for name in ("seeds", "accept", "published"):
            missing = [s for s in self.scales if s not in getattr(self, name)]
            if missing:
                raise ValueError(f"'{name}' says nothing for scale {missing[0]!r}")
        if self.expected == "not run":
            raise ValueError("'expected' cannot be 'not run': a claim that is never recorded is no claim")
        for scale in self.scales:
            of, seeds = self.accept[scale].of, self.seeds[scale]
            if self.direction is not None and self.direction.of != of:
                raise ValueError("'direction' must judge the same statistic as 'accept'")
            if of == "value" and seeds != 1:
                raise ValueError("'seeds' must be 1 where 'of' is 'value'")
            if seeds < FEWEST[of] and of != "slope":
                raise ValueError(f"'seeds' must be at least {FEWEST[of]} where 'of' is {of!r}")
        return self


class Cost(BaseModel):
    """What one of a chapter's notebooks takes at each scale: seconds on one core, and MB of memory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: dict[Scale, Annotated[float, Field(gt=0)]]
    memory: dict[Scale, Annotated[float, Field(gt=0)]] = {}


class ClaimFile(BaseModel):
    """All claims of one folder of the book, and what it says of its notebooks; no paper where it claims nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path
    folder: str
    paper: str | None
    claims: dict[str, Claim]
    notebooks: dict[str, Cost] = {}


_KEYS = ({"paper", "claims"}, {"paper", "claims", "notebooks"}, {"notebooks"})


# libyaml reads ten times faster; not every build of PyYAML has it.
class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A loader that refuses a key given twice, where PyYAML keeps the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool, type(None))):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _complaint(error: ValidationError) -> str:
    """Return the first complaint of a failed validation as ``field: what is wrong``."""
    first = error.errors(include_url=False)[0]
    # The tag of a rule and the discriminator are pydantic's, not the file's.
    path = [
        str(part) for part in first["loc"] if not re.fullmatch(r"at_least|at_most|within|ordered|excludes", str(part))
    ]
    what = first["msg"].removeprefix("Value error, ")
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{'.'.join(path) or 'claim'}: {what}{more}"


def load(path: Path | str) -> ClaimFile:
    """Read and validate a ``claims.yml``.

    Parameters
    ----------
    path
        The file; its folder's name becomes the first half of every claim's id.

    Returns
    -------
    ClaimFile

    Raises
    ------
    ClaimError
        The file cannot be read, is no YAML, or breaks the schema: the message names file, claim and field.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text("utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise ClaimError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ClaimError(f"{path}: is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ClaimError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or set(content) not in _KEYS:
        raise ClaimError(
            f"{path}: must have the two keys 'paper' and 'claims', and may have 'notebooks'; "
            "a folder that claims nothing has 'notebooks' alone"
        )
    paper, bodies = content.get("paper"), content.get("claims", {})
    if "claims" in content and not (isinstance(paper, str) and isinstance(bodies, dict) and bodies):
        raise ClaimError(f"{path}: 'paper' must be a name, and 'claims' a mapping with at least one claim")
    folder = path.resolve().parent.name
    claims: dict[str, Claim] = {}
    numbers: dict[tuple[str, str], str] = {}
    for key, body in bodies.items():
        if not isinstance(body, dict):
            raise ClaimError(f"{path}: claim {key!r}: must be a mapping of fields")
        try:
            claim = Claim.model_validate({"paper": paper, **body, "folder": folder, "key": key})
        except ValidationError as error:
            raise ClaimError(f"{path}: claim {key!r}: {_complaint(error)}") from None
        other = numbers.setdefault((claim.paper, claim.number), key)
        if other != key:
            raise ClaimError(f"{path}: claim {key!r}: number: {claim.number} of {claim.paper} is taken by {other!r}")
        claims[key] = claim
    notebooks = content.get("notebooks", {})
    try:
        return ClaimFile(path=path, folder=folder, paper=paper, claims=claims, notebooks=notebooks)
    except ValidationError as error:
        raise ClaimError(f"{path}: {_complaint(error)}") from None


def load_chapters(book: Path | str) -> dict[str, ClaimFile]:
    """Read every ``<book>/*/claims.yml``.

    Parameters
    ----------
    book
        The folder that holds the chapters.

    Returns
    -------
    dict
        Chapter to its `ClaimFile`, in alphabetical order.

    Raises
    ------
    ClaimError
        As `load`, or when two chapters give one number of one paper twice.
    """
    files: dict[str, ClaimFile] = {}
    numbers: dict[tuple[str, str], str] = {}
    for path in sorted(Path(book).glob("*/claims.yml")):
        file = files[path.parent.name] = load(path)
        for claim in file.claims.values():
            other = numbers.setdefault((claim.paper, claim.number), claim.id)
            if other != claim.id:
                raise ClaimError(
                    f"{path}: claim {claim.key!r}: number: {claim.number} of {claim.paper} is taken by {other}"
                )
    return files


def load_all(book: Path | str) -> dict[str, Claim]:
    """Read the claims of every chapter.

    Parameters
    ----------
    book
        The folder that holds the chapters.

    Returns
    -------
    dict
        Full id to `Claim`, chapters in alphabetical order, claims in the order of their files.

    Raises
    ------
    ClaimError
        As `load_chapters`.
    """
    return {claim.id: claim for file in load_chapters(book).values() for claim in file.claims.values()}
