"""Models by MIR, beside their benchmark scores: `mir-task leaderboard`."""

import csv
import fnmatch
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jinja2

from mir_task.reports.correlation import FEW, correlation
from mir_task.reports.ground import Ground, differences, settled
from mir_task.reports.panels import standard_errors
from mir_task.reports.records import Record, Runs, Scores
from mir_task.reports.tools import measured_by

INDICATORS = {"mir": "MIR", "caption_gain": "caption gain", "caption_loss": "caption loss"}
"""What a row has of its model before any benchmark, and its name in words."""
ERRORS = {"mir": "mir_stderr", "caption_gain": "caption_gain_stderr"}
"""Where the standard error of an indicator stands."""

NO_SIDE_FILE = "no side file, so documents, placement and layers are not known"

_CAPTIONS = ("caption_loss", "caption_gain", "caption_gain_stderr")

# What rows hold beside their benchmarks, as `as_csv` and the page's own export name it.
_PLAIN = (
    *("rank", "model", "adapter", "arguments", "date"),
    *("mir", "mir_stderr", "mir_published_fast", *_CAPTIONS),
)
_COMMON = (*Ground._fields, "document_set")
# What metrics of which lower is better are called, where the harness does not say it.
_LOWER = re.compile(r"(?<![a-z])(loss|perplexity|ppl|errors?|wer|cer|mae|r?mse)(?![a-z])", re.IGNORECASE)

Board = dict[str, Any]
"""Plain values: `benchmarks` and `groups`, each with its rows, ready for JSON."""


def board(runs: Runs, *, all_runs: bool = False, benchmarks: Sequence[str] = ("*",)) -> Board:
    """Rank what compares, and set apart what does not, with the reason.

    Args:
        runs: as found on disk.
        all_runs: every run; else the newest of a model on each ground.
        benchmarks: patterns of the names of benchmark columns, as `*` and `mmbench*`.

    Returns:
        A row holds its benchmark scores by name. The score of a model's newest run counts; where there
        is none with the model's adapter and arguments, that of the same checkpoint with others, which
        is named in `other_arguments`.
    """
    grounds = settled(record.ground for record in runs.records if record.ground)
    records = [
        replace(record, ground=grounds[record.ground]) if record.ground else record
        for record in runs.records
    ]
    if not all_runs:
        records = list({(r.model, r.task, r.ground): r for r in records}.values())
    groups: dict[tuple[Ground | None, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.ground, record.task), []).append(record)
    ordered = sorted(groups.items(), key=lambda item: (item[0][0] is None, -len(item[1]), item[0][1]))
    scores = _by_checkpoint(runs.scores, benchmarks)
    earlier: list[tuple[int, Ground]] = []
    content = []
    for number, ((ground, task), members) in enumerate(ordered, start=1):
        content.append(_group(number, ground, task, members, earlier, scores))
        if ground is not None:
            earlier.append((number, ground))
    found = {name for group in content for row in group["rows"] for name in row["benchmarks"]}
    better = {name: up for run in runs.scores for name, up in run.higher_is_better.items()}
    tools = {name: run.tool for run in runs.scores for name in run.values}
    return {
        "benchmarks": [
            {"name": name, "higher_is_better": better[name], "tool": tools[name]}
            for name in sorted(found)
        ],
        "groups": content,
    }


def _by_checkpoint(
    scores: Iterable[Scores], patterns: Sequence[str]
) -> dict[str, list[tuple[Scores, dict[str, float]]]]:
    chosen: dict[str, list[tuple[Scores, dict[str, float]]]] = {}
    for run in scores:
        values = {
            name: value
            for name, value in run.values.items()
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
        }
        chosen.setdefault(run.model.name, []).append((run, values))
    return chosen


def _group(
    number: int,
    ground: Ground | None,
    task: str,
    members: list[Record],
    earlier: list[tuple[int, Ground]],
    scores: dict[str, list[tuple[Scores, dict[str, float]]]],
) -> dict[str, Any]:
    apart = None
    if ground is None:
        apart = NO_SIDE_FILE
    elif earlier:
        nearest = min(earlier, key=lambda other: len(differences(ground, other[1])))
        apart = f"not ranked with group {nearest[0]}: {'; '.join(differences(ground, nearest[1]))}"
    rows = [_row(record, scores.get(record.model.name, [])) for record in members]
    rows.sort(key=lambda row: row["mir"])
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank if ground is not None else None
        row["label"] = _label(row, rows)
    columns = sorted({name for row in rows for name in row["benchmarks"]})
    indicators = [name for name in INDICATORS if any(row[name] is not None for row in rows)]
    return {
        "number": number,
        "task": task,
        "ground": None if ground is None else ground.plain(),
        "facts": None if ground is None else ground.facts(),
        "apart": apart,
        "columns": columns,
        "indicators": indicators,
        "starred": any(row["other_arguments"] for row in rows),
        "rows": rows,
        "correlations": {
            indicator: {name: correlation(rows, name, indicator) for name in columns}
            for indicator in (indicators if ground is not None and columns else ())
        },
    }


def _row(record: Record, scores: list[tuple[Scores, dict[str, float]]]) -> dict[str, Any]:
    values: dict[str, float] = {}
    others: dict[str, str] = {}
    for exact in (False, True):  # oldest first, so the newest stays, and the model's own above others
        for run, found in scores:
            if (run.model == record.model) == exact:
                values |= found
                for name in found:
                    others.pop(name, None)
                    if not exact:
                        others[name] = f"{run.model.adapter} {','.join(sorted(run.model.arguments))}"
    result = record.result
    return {
        "model": record.model.name,
        "adapter": record.model.adapter,
        "arguments": ",".join(sorted(record.model.arguments)),
        "date": record.date,
        "mir": record.mir,
        "mir_stderr": record.mir_stderr,
        "mir_published_fast": record.mir_published_fast,
        **{name: getattr(record, name) for name in _CAPTIONS},
        "benchmarks": values,
        "other_arguments": others,
        "curve": None if result is None else [layer.frechet for layer in result.layers],
        "curve_stderr": None if result is None else list(standard_errors(result, "frechet").values()),
        "details": dict(record.details or {}),
        "file": str(record.path),
    }


class Column(NamedTuple):
    """Numbers of a group's table."""

    key: str
    """Of a row, or a benchmark's name."""
    head: str
    lower_is_better: bool = True
    is_benchmark: bool = False

    def value(self, row: Mapping[str, Any]) -> float | None:
        """Of a row; None where it has none."""
        found: float | None = (row["benchmarks"] if self.is_benchmark else row).get(self.key)
        return found

    def cell(self, row: Mapping[str, Any]) -> str:
        """The same as a reader meets it."""
        if not self.is_benchmark:
            return _number(self.value(row))
        return _score(self.value(row)) + ("*" if self.key in row["other_arguments"] else "")


def _columns(group: Mapping[str, Any], content: Board) -> list[Column]:
    """Columns of numbers, in their order; captions where the group has some."""
    columns = [
        Column("mir", "MIR ↓"),
        Column("mir_stderr", "±"),
        Column("mir_published_fast", "published fast"),
    ]
    if "caption_loss" in group["indicators"]:
        columns.append(Column("caption_loss", "caption loss ↓"))
    if "caption_gain" in group["indicators"]:
        columns += [
            Column("caption_gain", "caption gain ↑", lower_is_better=False),
            Column("caption_gain_stderr", "±"),
        ]
    higher = {each["name"]: each["higher_is_better"] for each in content["benchmarks"]}
    for name in group["columns"]:
        metric = name.partition(" ")[2]
        lower = bool(_LOWER.search(metric)) if higher[name] is None else not higher[name]
        columns.append(Column(name, name, lower, is_benchmark=True))
    return columns


def markdown(content: Board) -> str:
    """The board as Markdown, a table a group."""
    sections = [_section(group, content) for group in content["groups"]]
    return "\n\n".join([*sections, *measured_by(content["benchmarks"])])


def _section(group: dict[str, Any], content: Board) -> str:
    names, columns = group["columns"], _columns(group, content)
    facts = [f"task {group['task']}"] if group["facts"] is None else group["facts"].values()
    lines = [f"## Group {group['number']}: {', '.join(facts)}", ""]
    if group["apart"]:
        lines += [f"{group['apart'][0].upper()}{group['apart'][1:]}.", ""]
    heads = ["rank", "model", *(column.head for column in columns), "run"]
    lines += [_line(heads), _line(["---:", "---", *["---:"] * len(columns), "---"])]
    for row in group["rows"]:
        cells = (column.cell(row) for column in columns)
        lines.append(_line([str(row["rank"] or ""), row["label"], *cells, row["date"]]))
    if group["starred"]:
        lines += ["", "\\* of the same checkpoint with another adapter or other arguments"]
    correlations = group["correlations"]
    if len(correlations) == 1:
        (found,) = correlations.values()
        for name in found:
            lines += ["", f"MIR and {name}: {found[name]['words']}"]
    elif correlations:
        lines += [
            "",
            _line(["correlation with", *(INDICATORS[indicator] for indicator in correlations)]),
        ]
        lines.append(_line(["---"] * (1 + len(correlations))))
        for name in names:
            words = [found[name]["words"] for found in correlations.values()]
            lines.append(_line([name, *(each.removesuffix(FEW) for each in words)]))
        if any(of["words"].endswith(FEW) for found in correlations.values() for of in found.values()):
            lines += ["", f"{FEW[2].upper()}{FEW[3:]}."]
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _label(row: dict[str, Any], rows: Iterable[dict[str, Any]]) -> str:
    """A model's name, with adapter and arguments where the name alone does not tell it from others."""
    same = [other for other in rows if other["model"] == row["model"]]
    if len({(other["adapter"], other["arguments"]) for other in same}) > 1:
        return f"{row['model']} ({row['adapter']}, {row['arguments']})"
    return str(row["model"])


def _number(value: float | None) -> str:
    """Four decimals, or N/A."""
    return "N/A" if value is None else f"{value:.4f}"


def _score(value: float | None) -> str:
    """As many decimals as a score of its size has meaning."""
    return "–" if value is None else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4f}"


def as_csv(content: Board) -> str:
    """The board as CSV, a row a value; ranks count within their group."""
    names = [benchmark["name"] for benchmark in content["benchmarks"]]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "apart", *_PLAIN, *names, *_COMMON, "file"])
    for group in content["groups"]:
        ground = group["ground"] or {"task": group["task"]}
        for row in group["rows"]:
            writer.writerow(
                [
                    *(group[key] for key in ("number", "apart")),
                    *(row[key] for key in _PLAIN),
                    *(row["benchmarks"].get(name) for name in names),
                    *(ground.get(key) for key in _COMMON),
                    row["file"],
                ]
            )
    return text.getvalue()


def as_json(content: Board) -> str:
    """The board as JSON."""
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def as_html(content: Board) -> str:
    """The board as one page that needs nothing else."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("mir_task", "reports"), autoescape=True)
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # details in their own order
    page = environment.get_template("leaderboard.html")
    columns = {group["number"]: _columns(group, content) for group in content["groups"]}
    exported = {"plain": _PLAIN, "common": _COMMON}
    return page.render(
        board=content, columns=columns, indicators=INDICATORS, errors=ERRORS, exported=exported
    )


WRITERS = {"csv": as_csv, "json": as_json, "html": as_html}
"""By the ending of a file."""
