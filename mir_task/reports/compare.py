"""The difference of two MIR values and whether it can be told from zero: `mir-task compare`."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from mir_task.captions import gain_difference, gains
from mir_task.errors import MIRError
from mir_task.reports.ground import differences, settled
from mir_task.reports.records import Record, read_record, read_runs
from mir_task.reports.side_file import SideFile
from mir_task.result import jackknife_stderr

LEVEL = 0.95


class Error(NamedTuple):
    """Standard error of a difference."""

    stderr: float
    freedom: float
    """Degrees of freedom of Student's t."""
    how: str
    """Where it comes from, in words."""


class LayerDifference(NamedTuple):
    """One decoder layer of both models. Distances are in units of the squared mean text norm."""

    layer: int
    first: float
    """F_k of the first model."""
    second: float
    difference: float
    """F_k of the second less that of the first."""
    share: float | None
    """Part of the difference of the sums over all layers; None where that is zero."""


class GainDifference(NamedTuple):
    """Caption gain of the second model less that of the first, over the documents that both have."""

    first: float
    """Of all documents of the first model."""
    second: float
    documents: int
    """That both have."""
    difference: float
    stderr: float | None
    """Paired, by the jackknife over documents; None of a single one."""
    interval: tuple[float, float] | None
    """95%."""


class Comparison(NamedTuple):
    """MIR of two models; differences are the second less the first."""

    first: Record
    second: Record
    difference: float
    error: Error | None
    """None where a value has no standard error."""
    interval: tuple[float, float] | None
    """95%."""
    layers: list[LayerDifference]
    caption_gain: GainDifference | None
    """None where a model has none."""

    @property
    def sentence(self) -> str:
        """Whether the difference can be told from zero."""
        if self.interval is None:
            return "Whether the difference can be told from zero is not known: there is no interval."
        low, high = self.interval
        if low <= 0 <= high:
            return "The difference cannot be told from zero: the 95% interval holds it."
        better = "second" if self.difference < 0 else "first"
        return (
            "The difference can be told from zero: the 95% interval does not hold it. "
            f"The {better} model has the lower MIR."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            **{
                name: {
                    "file": str(record.path),
                    "model": record.model.name,
                    "task": record.task,
                    "mir": record.mir,
                    "mir_stderr": record.mir_stderr,
                }
                for name, record in (("first", self.first), ("second", self.second))
            },
            "difference": self.difference,
            "error": None if self.error is None else self.error._asdict(),
            "interval": self.interval,
            "sentence": self.sentence,
            "layers": [layer._asdict() for layer in self.layers],
            "caption_gain": None if self.caption_gain is None else self.caption_gain._asdict(),
        }


def compare(first: Record, second: Record) -> Comparison:
    """The second model's MIR less the first's.

    Raises:
        MIRError: the two do not compare, with the reason.
    """
    if first.ground is None or second.ground is None:
        raise MIRError("only side files compare: the harness's results do not say what was measured")
    grounds = settled((first.ground, second.ground))
    if reasons := differences(grounds[second.ground], grounds[first.ground]):
        raise MIRError(
            f"{first.path} and {second.path} do not compare; the second has {'; '.join(reasons)}. "
            "Measure both on the same documents with the same settings"
        )
    difference = second.mir - first.mir
    error = _paired(first, second) or _unpaired(first, second)
    interval = None
    if error is not None:
        reach = error.stderr * float(stats.t.ppf((1 + LEVEL) / 2, error.freedom))
        interval = difference - reach, difference + reach
    layers, gain = _layers(first, second), _gain(first, second)
    return Comparison(first, second, difference, error, interval, layers, gain)


def _gain(first: Record, second: Record) -> GainDifference | None:
    assert isinstance(first.result, SideFile)
    assert isinstance(second.result, SideFile)
    values = first.result.caption_gain, second.result.caption_gain
    of_both = [
        gains(document.model_dump() for document in report.documents)
        for report in (first.result, second.result)
    ]
    found = gain_difference(of_both[1], of_both[0])
    if found is None or values[0] is None or values[1] is None:
        return None
    difference, stderr = found
    count = len(of_both[0].keys() & of_both[1].keys())
    interval = None
    if stderr is not None:
        reach = stderr * float(stats.t.ppf((1 + LEVEL) / 2, count - 1))
        interval = difference - reach, difference + reach
    return GainDifference(values[0], values[1], count, difference, stderr, interval)


def _groups(record: Record) -> dict[str, int]:
    """The group of the jackknife that each document is in."""
    assert record.result is not None
    assert record.rows is not None
    count = len(record.result.leave_one_group_out)
    return {name: row % count for name, row in record.rows.items()} if count > 1 else {}


def _paired(first: Record, second: Record) -> Error | None:
    """By the delete-a-group jackknife of the difference; None where groups are not the same."""
    groups = _groups(first)
    if not groups or groups != _groups(second):
        return None
    assert first.result is not None
    assert second.result is not None
    pairs = zip(first.result.left_out_mir, second.result.left_out_mir, strict=True)
    values = [other - one for one, other in pairs]
    how = f"paired: both saw the same documents in the same {len(values)} groups"
    return Error(jackknife_stderr(values), len(values) - 1, how)


def _unpaired(first: Record, second: Record) -> Error | None:
    """From both standard errors, with the degrees of freedom of Welch and Satterthwaite."""
    parts = []
    for record in (first, second):
        if record.mir_stderr is None:
            return None
        assert record.result is not None
        parts.append((record.mir_stderr**2, len(record.result.leave_one_group_out) - 1))
    total = sum(square for square, _ in parts)
    below = sum(square**2 / freedom for square, freedom in parts)
    freedom = total**2 / below if below else float(min(freedom for _, freedom in parts))
    how = (
        "not paired: their documents are in different groups, so both standard errors count as "
        "independent, and the interval is wider than it need be where the models move together"
    )
    return Error(math.sqrt(total), freedom, how)


def _layers(first: Record, second: Record) -> list[LayerDifference]:
    assert first.result is not None
    assert second.result is not None
    pairs = [
        (one.layer, one.frechet, other.frechet)
        for one, other in zip(first.result.layers, second.result.layers, strict=True)
    ]
    total = sum(other for _, _, other in pairs) - sum(one for _, one, _ in pairs)
    return [
        LayerDifference(number, one, other, other - one, (other - one) / total if total else None)
        for number, one, other in pairs
    ]


def find(first: Path, second: Path, task: str | None = None) -> tuple[Record, Record]:
    """The two side files that two paths mean, each a file or a folder with one.

    Args:
        first: side file, or folder of one model.
        second: likewise.
        task: to choose by, where folders hold several.

    Raises:
        MIRError: a file cannot be read, or folders leave open which is meant.
    """
    found = _candidates(first), _candidates(second)
    common = {record.task for record in found[0]} & {record.task for record in found[1]}
    if task is None and first.is_dir() and second.is_dir() and len(common) == 1:
        (task,) = common
    return _only(first, found[0], task), _only(second, found[1], task)


def _candidates(path: Path) -> list[Record]:
    if path.is_dir():
        return read_runs([path]).side_files
    return [read_record(path)]


def _only(path: Path, records: list[Record], task: str | None) -> Record:
    if not path.is_dir():
        return records[0]
    chosen = [record for record in records if task in (None, record.task)]
    if len(chosen) != 1:
        of_task = f" of {task}" if task else ""
        there = ", ".join(str(record.path) for record in chosen or records) or "nothing"
        raise MIRError(
            f"{path} holds {len(chosen)} side files{of_task}, not one ({there}): name the file, "
            "or the task with --task"
        )
    return chosen[0]


def markdown(comparison: Comparison) -> str:
    """The comparison for a person to read."""
    first, second = comparison.first, comparison.second
    assert first.ground is not None
    records = (("first", first), ("second", second))
    lines = [
        f"{name:<6}  {record.mir:.4f}{_plus_minus(record.mir_stderr)}  {record.model.name}"
        for name, record in records
    ]
    lines += [f"on      {', '.join(first.ground.facts().values())}", ""]
    lines.append(f"difference, second less first: {comparison.difference:+.4f}")
    if comparison.error is None or comparison.interval is None:
        lines.append("95% interval: none, for a value has no standard error (mir_groups)")
    else:
        low, high = comparison.interval
        error = comparison.error
        lines.append(f"95% interval: [{low:+.4f}, {high:+.4f}]")
        lines.append(
            f"standard error {error.stderr:.4f}, Student's t with {error.freedom:.3g} degrees of "
            f"freedom; {error.how}"
        )
    lines += [comparison.sentence, ""]
    if (gain := comparison.caption_gain) is not None:
        lines += [*_gain_lines(gain), ""]
    lines += ["| layer | F, first | F, second | difference | share |", "|---:|---:|---:|---:|---:|"]
    for layer in comparison.layers:
        share = "" if layer.share is None else f"{layer.share:.1%}"
        lines.append(
            f"| {layer.layer} | {layer.first:.5g} | {layer.second:.5g} | {layer.difference:+.5g} "
            f"| {share} |"
        )
    return "\n".join(lines)


def _gain_lines(gain: GainDifference) -> list[str]:
    lines = [
        f"caption gain {gain.first:.4f} and {gain.second:.4f}; second less first: "
        f"{gain.difference:+.4f} nats a token"
    ]
    if gain.interval is not None:
        low, high = gain.interval
        lines.append(f"95% interval: [{low:+.4f}, {high:+.4f}], paired over {gain.documents} documents")
        if low <= 0 <= high:
            lines.append("It cannot be told from zero.")
        else:
            which = "second" if gain.difference > 0 else "first"
            lines.append(f"The {which} model takes more from the image.")
    return lines


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {error:.4f}"
