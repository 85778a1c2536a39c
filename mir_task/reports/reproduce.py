"""Measured values beside published ones, each with a verdict: `mir-task reproduce`."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mir_task.reports.records import Record


class Published(BaseModel):
    """A value that was published, and what a measurement must be to compare with it."""

    model_config = ConfigDict(extra="forbid")

    table: str
    """Where it stands."""
    mir: float
    tolerance: float = Field(ge=0)
    """How far a measured value may be from it and still match."""
    reason: str
    """Why the tolerance is that."""
    task: str | None = None
    """Of the run that it is compared with; where left out, the run has one MIR task."""
    placement: str | None = None
    documents: int | None = None


class Entry(BaseModel):
    """One entry of a list: a run of `mir-task zoo`, and what it is compared with.

    All further keys are arguments of lmms-eval, as in a list of `mir-task zoo`.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    name: str
    missing: str | None = None
    """Why it cannot be measured by anyone."""
    made_from: tuple[str, ...] = ()
    """Public parts of a checkpoint that is not published in one piece."""
    published: Annotated[
        tuple[Published, ...], BeforeValidator(lambda of: [of] if isinstance(of, dict) else of)
    ] = ()

    @property
    def config(self) -> dict[str, Any]:
        """Arguments of lmms-eval, by name."""
        return dict(self.model_extra or {})


class Row(NamedTuple):
    """One value of one entry; either may be missing, the measured or the published one."""

    name: str
    published: Published | None = None
    record: Record | None = None
    absent: str = ""
    """Why there is no record."""

    @property
    def difference(self) -> float | None:
        """What the published fast mode gives here, less the published value."""
        if self.record is None or self.published is None or self.record.mir_published_fast is None:
            return None
        return self.record.mir_published_fast - self.published.mir

    @property
    def obstacle(self) -> str:
        """Why the two do not compare; empty where they do."""
        if self.record is None or self.published is None:
            return ""
        ground, wanted = self.record.ground, self.published
        if ground is None:
            return "its side file is gone, so placement and documents are not known"
        if self.difference is None:
            return "the published fast mode has no value for it"
        documents = len(ground.documents)
        reasons = []
        if wanted.placement not in (None, ground.placement):
            reasons.append(f"placement {ground.placement}, not {wanted.placement}")
        if wanted.documents not in (None, documents):
            reasons.append(f"{documents} documents, not {wanted.documents}")
        if ground.outliers != "replace":
            reasons.append(f"outliers by the rule {ground.outliers}, not replace")
        if ground.text.endswith("tokens"):
            reasons.append(f"{ground.text}, not all tokens of the text")
        return ", ".join(reasons)

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.record is None:
            return "not measured"
        if self.published is None:
            return "nothing published"
        if self.obstacle:
            return "does not compare"
        assert self.difference is not None
        return "match" if abs(self.difference) <= self.published.tolerance else "no match"

    def plain(self) -> dict[str, Any]:
        """Ready for JSON."""
        record, ground = self.record, self.record.ground if self.record else None
        return {
            "name": self.name,
            "verdict": self.verdict,
            "why": self.absent or self.obstacle,
            "published": self.published.model_dump() if self.published else None,
            "difference": self.difference,
            "mir": record.mir if record else None,
            "mir_stderr": record.mir_stderr if record else None,
            "mir_published_fast": record.mir_published_fast if record else None,
            "ground": ground.plain() if ground else None,
            "file": str(record.path) if record else None,
        }


def rows_of(entry: Entry, records: Iterable[Record] = (), absent: str = "") -> list[Row]:
    """What an entry measured beside what was published of it.

    Args:
        entry: of the list.
        records: of its run, oldest first.
        absent: why there are none.
    """
    of_task = {record.task: record for record in records}
    if not entry.published:
        measured = [Row(entry.name, record=record) for record in of_task.values()]
        return measured or [Row(entry.name, absent=absent)]
    rows = []
    for published in entry.published:
        fitting = [r for task, r in of_task.items() if published.task in (None, task)]
        if len(fitting) == 1:
            rows.append(Row(entry.name, published, fitting[0]))
        else:
            have = f"its run measured {', '.join(of_task)}"
            why = (
                f"{have}: name the `task` of `published`"
                if published.task is None
                else f"{have}, not {published.task}, the `task` of `published`"
            )
            rows.append(Row(entry.name, published, absent=absent or why))
    return rows


_COLUMNS = ("model", "table", "published", "ours, published fast", "difference", "tolerance", "verdict")
_EXACT = ("ours, exact", "±")


def markdown(rows: Sequence[Row]) -> str:
    """A table of what was measured, the reasons of tolerances, and what was not measured and why."""
    measured = [row for row in rows if row.record is not None]
    lines = []
    if measured:
        lines += [
            _line([*_COLUMNS, *_EXACT, "task"]),
            _line(["---", "---", *["---:"] * 4, "---", "---:", "---:", "---"]),
        ]
    for row in measured:
        record, published = row.record, row.published
        assert record is not None
        lines.append(
            _line(
                [
                    row.name,
                    published.table if published else "–",
                    _number(published.mir if published else None, 3),
                    _number(record.mir_published_fast, 4),
                    _number(row.difference, 4, sign=True),
                    _number(published.tolerance if published else None, 4),
                    row.verdict,
                    _number(record.mir, 4),
                    _number(record.mir_stderr, 4),
                    record.task,
                ]
            )
        )
    if any(row.published for row in measured):
        lines += ["", "Difference: ours in the published fast mode, less the published value."]
    for reason, of in _by((row.published.reason, row) for row in measured if row.published).items():
        widths = sorted({f"{row.published.tolerance:g}" for row in of if row.published})
        lines.append(f"Tolerance {', '.join(widths)}: {reason}.")
    for row in measured:
        if row.obstacle:
            lines.append(f"{row.name} does not compare: {row.obstacle}.")
    missing = _by((row.absent, row) for row in rows if row.record is None)
    if missing:
        lines += ["", "Not measured:"] if lines else ["Not measured:"]
    for why, of in missing.items():
        names = ", ".join(dict.fromkeys(row.name for row in of))
        tables: dict[str, list[str]] = {}
        for published in (row.published for row in of if row.published):
            tables.setdefault(published.table, []).append(_number(published.mir, 3))
        values = "; ".join(f"{table}: {', '.join(each)}" for table, each in tables.items())
        lines.append(f"- {names}{f' ({values})' if values else ''}: {why}")
    return "\n".join(lines)


def _by(pairs: Iterable[tuple[str, Row]]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for key, row in pairs:
        grouped.setdefault(key, []).append(row)
    return grouped


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    return "–" if value is None else f"{value:{'+' if sign else ''}.{decimals}f}"
