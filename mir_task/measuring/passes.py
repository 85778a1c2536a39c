"""All passes over the documents, on all processes together.

Mostly there is one. The documents run again for layers whose rows did not fit into memory beside the
others (`mir_task.measuring.plan`). After each pass the processes exchange what their statistics tell,
layer by layer, and each layer's distance is computed on one of them.
"""

import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from loguru import logger
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from mir_task.captions import caption_gain, caption_loss, gains
from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.measuring import plan
from mir_task.measuring.log import DocumentLog, reasons
from mir_task.measuring.processes import CONNECTED, all_gather, on_every_rank, rank
from mir_task.measuring.run import run_documents
from mir_task.measuring.source import StateSource
from mir_task.metric.definition import ComputedLayer, result_of_layers
from mir_task.result import MIRResult
from mir_task.settings import MeasureSettings
from mir_task.statistics.finish import distances, groups_to_leave_out, learn
from mir_task.statistics.meter import MIRMeter
from mir_task.statistics.sums import KnownLayer


class Measurement(NamedTuple):
    """What all processes measured together."""

    result: MIRResult
    log: DocumentLog
    notes: list[str]
    """What a reader of the value should know."""
    seconds: float
    """Wall time of merging and computing."""
    rows: dict[int, tuple[Tensor, Tensor]]
    """By layer number: rows [n, d] of some vision and some text tokens, where they were asked for."""
    plan: dict[str, Any]
    """Where statistics lived, in how much memory, and what each pass measured."""

    def report(self, modality: str) -> dict[str, Any]:
        """What the side file says of what was measured, beside whose it is and with which settings."""
        ordered = sorted(self.log.documents.items(), key=lambda item: item[1]["row"])
        return {
            **self.log.facts,
            "documents": [{"id": document_id, **seen} for document_id, seen in ordered],
            "skipped": self.log.skipped,
            "traps": self.log.traps,
            "warnings": [*self.log.warnings(self.result, modality), *self.notes],
            "plan": self.plan,
            "seconds": {"forwards": self.log.seconds, "metric": self.seconds},
        }

    def sample(self) -> dict[int, tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """As `rows`, for a file."""
        return {
            number: (vision.float().cpu().numpy(), text.float().cpu().numpy())
            for number, (vision, text) in self.rows.items()
        }


def measure_together(
    make_reader: Callable[[], StateSource],
    documents: list[Document],
    settings: MeasureSettings,
    name: str,
    *,
    bars: bool = True,
    words: Callable[[str], str] = str,
) -> Measurement:
    """The result of all processes' documents, on each of them.

    Args:
        make_reader: gives what runs this process's model, or reads what one gave.
        documents: of this process, in the order to run.
        settings: what is measured and how.
        name: of the task, for bars and messages.
        bars: whether process 0 shows progress bars.
        words: puts what is logged into the caller's terms.

    Raises:
        MIRError: on every process alike, when one of them cannot go on, or a document is there twice.
    """
    shares = all_gather([document.id for document in documents])
    with on_every_rank():
        counts = Counter(itertools.chain(*shares))
        if twice := [each for each, number in counts.items() if number > 1]:
            raise MIRError(
                f"{len(twice)} document(s) of {len(counts)} are given more than once, first "
                f"{twice[0]!r} ({counts[twice[0]]} times, {len(shares)} process(es)): each counts once, "
                "so give it to one process, once"
            )
    run = _Passes(make_reader, documents, settings, name, bars=bars, words=words)
    planned: plan.Pass | None = run.first
    while planned is not None:
        meter = run.count(planned)
        if meter is None:
            planned = run.first
            continue
        run.finish(meter, planned)
        planned = run.next()
    log, *others = all_gather(run.log)
    with on_every_rank():
        for other in others:
            log.merge(other)
        result = result_of_layers(run.done.values(), settings.outliers)
        entries = [{"id": name, **entry} for name, entry in log.documents.items()]
        loss, gain = caption_loss(entries), caption_gain(entries)
        captions = {
            "caption_loss": loss and loss.value,
            "caption_gain": gain and gain.value,
            "caption_gain_stderr": gain and gain.stderr,
            "caption_gains": gains(entries),
        }
        result = result.model_copy(update=captions)
    if settings.measures_captions and loss is None:
        causes = dict.fromkeys(entry["caption_lost"] for entry in entries if "caption_lost" in entry)
        run.note(f"the losses of captions are N/A: {'; '.join(causes)}")
    elif settings.measures_gain and gain is None:
        lost = [entry["caption_gain_lost"] for entry in entries if "caption_gain_lost" in entry]
        why = reasons(lost) or f"no document has another {settings.modality} than the others"
        if settings.caption_gain:
            raise MIRError(
                f"{name}: caption_gain could not be measured ({why}); mir_caption_gain: false measures "
                "MIR alone"
            )
        run.note(f"caption_gain is N/A: {why}")
    rows = {number: layer.rows for number, layer in run.done.items() if layer.rows is not None}
    return Measurement(result, log, run.notes, run.seconds, rows, run.plan())


class _Passes:
    """The passes over a task's documents; arguments as `measure_together`."""

    def __init__(
        self,
        make_reader: Callable[[], StateSource],
        documents: list[Document],
        settings: MeasureSettings,
        name: str,
        *,
        bars: bool,
        words: Callable[[str], str],
    ) -> None:
        self._words = words
        self.documents = documents
        self.settings = settings
        self.name = name
        self.bars = bars
        self.notes: list[str] = []
        self.log = DocumentLog()
        """Of this process's documents."""
        self.seconds = 0.0
        with on_every_rank():
            self.reader = make_reader()
            devices = self.reader.layer_devices
            memory = settings.host_memory, settings.accelerator_memory
            own = plan.room_for(devices.values(), *memory)
            self.shape = self.reader.shape
        self.room = plan.Room(*(min(sizes) for sizes in zip(*all_gather(own), strict=True)))
        with on_every_rank():
            self.places = plan.choose_places(devices, self.shape, self.room, settings.groups)
        self.first = plan.Pass(tuple(devices), "rows", {})
        self._start()
        for note in self.places.notes:
            self.note(note)

    def _start(self) -> None:
        self.done: dict[int, ComputedLayer] = {}
        self.passes: list[plan.Pass] = []
        self._planned: list[plan.Pass] = []
        self._known: dict[int, KnownLayer] = {}
        self._left_out: list[int] = []
        self._tokens = 0

    def note(self, text: str) -> None:
        """Log what a reader of the value should know, and keep it; once, if passes start anew too."""
        if text in self.notes:
            return
        self.notes.append(text)
        if rank() == 0:
            logger.warning(f"{self.name}: {self._words(text)}")

    def count(self, planned: plan.Pass) -> MIRMeter | None:
        """Run the documents once; None if one that was counted before cannot be counted any more."""
        meter = MIRMeter(
            outliers=self.settings.outliers,
            groups=self.places.groups,
            memory={device: self.room.on(device) for device in self.places.devices.values()},
            numbers=planned.layers,
            known={n: self._known[n] for n in planned.layers} if planned.keeps == "sums" else {},
            sample_rows=self.settings.sample_rows,
            extras=self.settings.extras,
        )
        with on_every_rank():
            part = run_documents(
                self.reader,
                [document for document in self.documents if document.id not in self.log.skipped],
                meter,
                {number: self.places.devices[number] for number in planned.layers},
                self.settings,
                self.name,
                bars=self.bars,
                captions=not self.passes,
            )
            self.log.merge(part)
            self.log.seconds += part.seconds
        if self.passes and any(all_gather(bool(part.skipped))):
            self.note("a document that was counted is left out after all, so all run again")
            self._start()
            return None
        return meter

    def finish(self, meter: MIRMeter, planned: plan.Pass) -> None:
        """Measure the layers whose rows all processes kept, or whose sums they have."""
        started = time.perf_counter()
        known, kept, taken = meter.known, set(planned.layers), planned.bytes
        groups = list(meter.documents.values())
        layers = {number: meter.layer(number) for number in planned.layers}
        if planned.keeps == "rows":
            self._check_documents(meter)
            tokens = sum(len(n) for of in meter.tokens.layer(planned.layers[0]) for n in of.norms)
            known = learn(meter.tokens.layers, groups, meter.tokens.choices, meter.options, CONNECTED)
            for of_process in all_gather(meter.tokens.kept()):
                kept &= set(of_process)
            taken = self._bytes(meter)
            self._tokens = max(all_gather(tokens))
        if not self.passes:
            self._learn_of_all(known)
        elif not kept:
            raise MIRError(
                f"{self.name}: the rows of layers {planned.layers} outgrew the room planned for them"
            )
        self.passes.append(plan.Pass(tuple(sorted(kept)), planned.keeps, taken))
        layers = {number: layers[number] for number in sorted(kept)}
        meter.clear()  # so that a layer's rows are freed after its turn
        bar = functools.partial(tqdm, desc=f"{self.name}: layers", disable=not self.bars or rank() != 0)
        options, left_out = meter.options, self._left_out
        self.done |= distances(layers, known, groups, left_out, options, CONNECTED, bar)
        self.seconds += time.perf_counter() - started

    def next(self) -> plan.Pass | None:
        """The next pass; None once all layers are measured."""
        if not self._planned:
            left = self.places.devices.keys() - self.done.keys()
            self._planned = plan.later_passes(self.places, self.shape, self.room, self._tokens, left)
            if self._planned and len(self.passes) == 1:
                self.note(plan.passes_note(self.places, self.room, [*self.passes, *self._planned]))
        return self._planned.pop(0) if self._planned else None

    def plan(self) -> dict[str, Any]:
        """For the side file."""
        devices = self.places.devices
        return {
            "room_gib": {str(d): self.room.on(d) for d in sorted(set(devices.values()), key=str)},
            "places": {number: str(device) for number, device in devices.items()},
            "groups": self.places.groups,
            "passes": [each.to_dict() for each in self.passes],
        }

    def _check_documents(self, meter: MIRMeter) -> None:
        """Raise MIRError where the processes have no document, or too few."""
        parts = all_gather((len(meter), list(self.log.skipped.values())))
        counted = sum(count for count, _ in parts)
        skipped = [reason for _, of_process in parts for reason in of_process]
        if not counted:
            found = reasons(skipped) or "the run has none"
            raise MIRError(f"{self.name}: no document could be measured; {found}")
        least = self.settings.min_documents
        if counted < (len(skipped) if least is None else least):
            raise MIRError(
                f"{self.name}: {len(skipped)} of {counted + len(skipped)} documents could not be "
                f"measured, so a value would be of the others alone; {reasons(skipped)}; "
                f"mir_min_documents: {counted} in the task measures the others"
            )

    def _learn_of_all(self, known: dict[int, KnownLayer]) -> None:
        """Keep what the first pass tells of all layers."""
        self._known = known
        self.shape = plan.Shape(self.shape.size, next(iter(known.values()))[1].thresholds.element_size())
        groups = groups_to_leave_out(known.values(), self.places.groups, self.settings.outliers)
        if isinstance(groups, str):
            self.note(f"mir_stderr is N/A: {groups}; set mir_groups")
        else:
            self._left_out = groups

    def _bytes(self, meter: MIRMeter) -> dict[torch.device, int]:
        """Memory of rows and samples on each device."""
        taken = dict.fromkeys(self.places.devices.values(), 0)
        for number, pair in meter.tokens.layers.items():
            taken[self.places.devices[number]] += sum(tokens.nbytes for tokens in pair)
        return taken
