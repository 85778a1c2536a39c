"""MIR by the number of documents (the paper's Table 6), from one set of forwards: `mir-task samples`.

A draw is an order of the documents; its first n make the sample of size n, so the samples of one draw
are nested. The rows of all documents are kept, for as many layers at a time as fit, and each sample is
measured from the rows of its documents.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lmms_eval.api.model import lmms
from loguru import logger
from tqdm import tqdm

from mir_task.documents.draw import available, in_draw_order
from mir_task.errors import MIRError
from mir_task.files import versions
from mir_task.harness.adapter import Adapter
from mir_task.harness.requests import documents_of
from mir_task.harness.task import MIRTask
from mir_task.measuring import plan
from mir_task.measuring.run import run_documents
from mir_task.metric.definition import ComputedLayer, result_of_layers
from mir_task.reports.side_file import SCHEMA_VERSION
from mir_task.result import LayerResult, MIRResult
from mir_task.settings import Settings
from mir_task.statistics.meter import MIRMeter
from mir_task.tasks import mir_keys, with_base

_NAMES = ("mir", "mir_published_fast")
SIZES = (1, 5, 10, 20, 50, 100, 200, 500, 800, 1000)
"""Those of the paper's Table 6."""


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


def _sizes(
    config: Mapping[str, Any], sizes: Sequence[int], documents: int | None
) -> tuple[Sequence[int], int]:
    """The sizes of the samples, and the number of documents to draw them from.

    Raises:
        MIRError: there are fewer documents than that, with what there is.
    """
    name = str(config.get("task"))
    there = available(name, Settings.of(f"task {name}", mir_keys(config)))
    if not sizes:
        most = min(documents or there, there)
        sizes = [size for size in SIZES if 2 * size <= most] or [1]
    count = documents or (2 * sizes[-1] if 2 * sizes[-1] <= there else there)
    if count > there:
        raise MIRError(f"{name} has {there} documents, and --documents asks for {count}: lower it")
    if count < sizes[-1]:
        raise MIRError(
            f"a sample of {sizes[-1]} documents cannot be drawn from {count}: lower the largest of "
            f"--sizes or raise --documents; {name} has {there}"
        )
    return sizes, count


def samples(
    load: Callable[[], lmms],
    config: Mapping[str, Any],
    *,
    sizes: Sequence[int] = (),
    draws: int = 10,
    documents: int | None = None,
    memory: float | None = None,
) -> Samples:
    """MIR of several draws of each size.

    Args:
        load: gives the loaded adapter; called once sizes and documents are known to fit.
        config: of the task that the documents are of.
        sizes: numbers of documents; where empty, those of `SIZES` of which there are twice as many.
        draws: random samples of each size.
        documents: to draw from; twice the largest size where None.
        memory: GiB for rows where each layer runs; half of what is free where None. The documents run
            once for every few layers whose rows fit.

    Raises:
        MIRError: sizes and documents do not fit each other, the rows of one layer do not fit into
            `memory`, or the task cannot be measured.
    """
    config = with_base(config)
    sizes, count = _sizes(config, sorted(set(sizes)), documents)
    task = MIRTask({**config, "mir_documents": count})
    lm = load()
    queue = documents_of(lm, task)
    adapter = Adapter(lm, task.settings)
    orders = [in_draw_order((document.id for document in queue), n, count) for n in range(draws)]
    members = {
        Sample(n, size): frozenset(order[:size]) for n, order in enumerate(orders) for size in sizes
    }
    layers: dict[Sample, list[LayerResult]] = {sample: [] for sample in members}
    devices = {number: d for number, d in plan.layer_devices(adapter.decoder).items() if number}
    room = plan.room_for(devices.values(), memory, memory)
    place = plan.choose_places(devices, plan.shape(adapter.decoder), room, 0)
    for note in place.notes:
        logger.warning(f"{task.name}: {note}")
    # A sample has as many documents as it is said to have; nothing is told of their captions.
    alone = {"on_error": "stop", "caption_ppl": False, "caption_gain": False}
    settings = task.settings.model_copy(update=alone)
    left, passes = sorted(devices), 0
    while left:
        meter = MIRMeter(
            outliers=settings.outliers,
            memory={device: room.on(device) for device in place.devices.values()},
            numbers=left,
        )
        capturing = {number: place.devices[number] for number in left}
        log = run_documents(adapter, queue, meter, capturing, settings, task.name)
        passes += 1
        kept = meter.tokens.kept()
        if not kept:
            raise MIRError(
                f"the rows of {count} documents do not fit for even one decoder layer into "
                f"{min(map(room.on, capturing.values())):.3g} GiB: raise --memory (GiB), or lower "
                "--documents or the largest of --sizes"
            )
        for sample in tqdm(members, desc=f"{task.name}: samples", unit="sample"):
            layers[sample] += meter.only(members[sample]).compute().layers
        left = [number for number in left if number not in kept]
    facts = {**log.facts, "layers": len(devices)}
    values = {
        sample: result_of_layers(map(ComputedLayer, of_sample), settings.outliers)
        for sample, of_sample in layers.items()
    }
    return Samples(values, facts, count, passes)
