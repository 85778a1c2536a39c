"""MIR by the number of documents (the paper's Table 6), from one set of forwards: `mir-task samples`.

A draw is an order of the documents; its first n make the sample of size n, so the samples of one draw
are nested. A document is counted once a draw, into the segment between two sizes, and the segments are
merged from the smallest size to the largest.
"""

import itertools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lmms_eval.api.model import lmms
from torch import Tensor
from tqdm import tqdm

from mir_task import budget
from mir_task.adapter import Adapter
from mir_task.data import in_draw_order
from mir_task.errors import MIRError
from mir_task.harness import MIRTask, documents_of
from mir_task.measurement import measure
from mir_task.meter import MIRMeter
from mir_task.metric import MeasuredLayer, MIRResult
from mir_task.moments import bytes_at_most
from mir_task.placement import Document
from mir_task.results import SCHEMA_VERSION, versions

_NAMES = ("mir", "mir_published_fast")
_GIB = 2**30


class Sample(NamedTuple):
    """One draw of one size."""

    draw: int
    size: int


@dataclass
class Samples:
    """What was measured."""

    values: dict[Sample, MIRResult]
    facts: dict[str, Any]
    documents: int
    passes: int

    def table(self) -> str:
        """Mean, range and standard deviation over the draws of each size, in Markdown."""
        lines = [
            "| N | MIR, mean | lowest | highest | standard deviation | published fast, mean |",
            "|---:|---:|---:|---:|---:|---:|",
        ]
        for size, results in self.by_size():
            mir = [result.mir for result in results]
            fast = statistics.mean(result.mir_published_fast for result in results)
            deviation = f"{statistics.stdev(mir):.4f}" if len(mir) > 1 else ""
            lines.append(
                f"| {size} | {statistics.mean(mir):.4f} | {min(mir):.4f} | {max(mir):.4f} | "
                f"{deviation} | {fast:.4f} |"
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Values of all samples, in the order of the draws, ready for JSON."""
        rows = [
            {"size": size, **{name: [r.to_dict()[name] for r in results] for name in _NAMES}}
            for size, results in self.by_size()
        ]
        facts = {"documents": self.documents, "passes": self.passes, **self.facts}
        return {"schema_version": SCHEMA_VERSION, **facts, "sizes": rows, "versions": versions()}

    def by_size(self) -> Iterator[tuple[int, list[MIRResult]]]:
        """The results of each size, in the order of the draws."""
        for size in sorted({sample.size for sample in self.values}):
            yield size, [self.values[sample] for sample in sorted(self.values) if sample.size == size]


class _Counter(NamedTuple):
    """Meters, of which each document belongs to some; counts as one `MIRMeter` does."""

    meters: dict[Sample, MIRMeter]
    members: Mapping[Sample, frozenset[str]]

    def update(
        self,
        document_id: str,
        vision_rows: Sequence[Tensor],
        text_rows: Sequence[Tensor],
        *,
        group: int = 0,
    ) -> None:
        """As `MIRMeter.update`."""
        for sample, meter in self.meters.items():
            if document_id in self.members[sample]:
                meter.update(document_id, vision_rows, text_rows, group=group)


def samples(
    lm: lmms,
    config: Mapping[str, Any],
    *,
    sizes: Sequence[int],
    draws: int = 10,
    documents: int | None = None,
    memory: float | None = None,
    passes: int = 1,
) -> Samples:
    """MIR of several draws of each size.

    Args:
        lm: loaded adapter.
        config: of the task that the documents are of.
        sizes: numbers of documents.
        draws: random samples of each size.
        documents: to draw from; twice the largest size where None.
        memory: GiB for statistics; half of what is free where None.
        passes: groups of layers, for each of which all documents run once.

    Raises:
        MIRError: sizes and documents do not fit each other, the statistics do not fit into `memory`,
            or the task cannot be measured.
    """
    sizes = sorted(set(sizes))
    count = documents or 2 * sizes[-1]
    if count < sizes[-1]:
        raise MIRError(
            f"a sample of {sizes[-1]} documents cannot be drawn from {count}: lower the size or raise "
            "the number of documents"
        )
    task, queue = documents_of(lm, {**config, "mir_documents": count})
    adapter = Adapter(lm, task.settings)
    facts, tokens = _first(adapter, queue[0])
    orders = [in_draw_order((d.id for d in queue), n) for n in range(draws)]
    run = _Run(adapter, task, queue, facts, sizes, orders)
    layers = tuple(range(1, facts["layers"] + 1))
    room = budget.room({}, memory, 0).host
    at_once = math.ceil(len(layers) / passes)
    run.check_memory(room, at_once, tokens)
    for first in range(0, len(layers), at_once):
        run.count(layers[first : first + at_once], room)
    return Samples(
        values={
            sample: MIRResult.of_layers(of_sample, task.settings.mir_outliers)
            for sample, of_sample in run.measured.items()
        },
        facts=facts,
        documents=count,
        passes=passes,
    )


def _first(adapter: Adapter, document: Document) -> tuple[dict[str, Any], int]:
    """What the model is, and how many tokens one document gives."""
    with adapter.capturing():
        prefill = adapter.see(document, probe=None).prefill
    facts = {**adapter.facts(prefill), "layers": len(adapter.decoder.layers)}
    return facts, int((prefill.vision | prefill.text).sum())


class _Run:
    """The passes over the documents.

    Args:
        adapter: that has seen a document, so the placement of all is settled.
        task: that the documents are of.
        documents: in the order to run.
        facts: of the model.
        sizes: in rising order.
        orders: ids of the documents in the order of each draw.
    """

    def __init__(
        self,
        adapter: Adapter,
        task: MIRTask,
        documents: list[Document],
        facts: Mapping[str, Any],
        sizes: Sequence[int],
        orders: Sequence[Sequence[str]],
    ) -> None:
        self.adapter = adapter
        self.task = task
        self.documents = documents
        self.settings = task.settings.model_copy(update={"mir_on_error": "stop"})
        self.shape = budget.Shape(facts["hidden_size"], getattr(torch, facts["hidden_dtype"]).itemsize)
        self.samples = {
            Sample(draw, size): frozenset(order[:size])
            for draw, order in enumerate(orders)
            for size in sizes
        }
        self.segments = {
            Sample(draw, high): frozenset(order[low:high])
            for draw, order in enumerate(orders)
            for low, high in itertools.pairwise((0, *sizes))
        }
        """Documents of each sample that are not in the next smaller one of its draw."""
        self.measured: dict[Sample, list[MeasuredLayer]] = {sample: [] for sample in self.samples}

    def check_memory(self, room: float, layers: int, tokens: int) -> None:
        """Refuse what does not fit into `room` GiB with `layers` layers at once.

        Raises:
            MIRError: it does not fit; the message names what would.
        """
        most = bytes_at_most(*self.shape, 0)
        row = self.shape.size * self.shape.itemsize
        needed = 2.0 * most  # the sample that is put together, and its copy while it is computed
        for size in sorted({sample.size for sample in self.segments}):
            for segment, members in self.segments.items():
                if segment.size == size:
                    needed += min(most, len(members) * tokens * row)
            if needed * layers / _GIB > room:
                draws = sum(sample.size == size for sample in self.samples)
                raise MIRError(
                    f"{draws} draws of {size} documents take {needed * layers / _GIB:.2f} GiB for "
                    f"{layers} layers at once, and {room:.2f} GiB are for them: lower --draws or the "
                    "largest of --sizes, raise --memory (GiB), or raise --passes (groups of layers, for "
                    "each of which the documents run once)"
                )

    def count(self, numbers: tuple[int, ...], room: float) -> None:
        """Measure the layers of these numbers."""
        segments = {sample: self._meter(numbers) for sample in self.segments}
        self._pass(segments, self.segments, numbers)
        late: dict[Sample, MIRMeter] = {}
        running: dict[int, MIRMeter] = {}
        for sample in tqdm(self.samples, desc=f"{self.task.name}: samples", unit="sample"):
            meter = running.setdefault(sample.draw, self._meter(numbers))
            meter.merge(segments.pop(sample))
            if meter.late == "raise" and meter.needs_second_pass():
                late[sample] = meter.second_pass()
            else:
                self._measured(sample, meter)
        running.clear()
        # A sample with outliers that one pass could not tell is counted by itself.
        each = len(numbers) * bytes_at_most(*self.shape, 0) / _GIB
        at_once = max(int(room / each) - 1, 1)
        while late:
            again = {sample: late.pop(sample) for sample in list(late)[:at_once]}
            self._pass(again, self.samples, numbers)
            for sample, meter in again.items():
                self._measured(sample, meter)

    def _meter(self, numbers: tuple[int, ...]) -> MIRMeter:
        late = "raise" if self.settings.mir_late_outliers == "second_pass" else "count"
        return MIRMeter(outliers=self.settings.mir_outliers, late=late, numbers=numbers)

    def _pass(
        self,
        meters: dict[Sample, MIRMeter],
        members: Mapping[Sample, frozenset[str]],
        numbers: tuple[int, ...],
    ) -> None:
        needed = frozenset[str]().union(*(members[sample] for sample in meters))
        measure(
            self.adapter,
            [document for document in self.documents if document.id in needed],
            _Counter(meters, members),
            dict.fromkeys(numbers, budget.HOST),
            self.settings,
            self.task.name,
        )

    def _measured(self, sample: Sample, meter: MIRMeter) -> None:
        self.measured[sample] += [
            meter.layers[number].measured(number, (), torch.float64) for number in sorted(meter.layers)
        ]
