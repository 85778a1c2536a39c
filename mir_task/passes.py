"""All passes over the documents, on all processes together.

Mostly there is one. The documents run again for layers that did not fit into memory beside the others
(`mir_task.budget`), and for layers whose outliers could not be told in one pass (`mir_task.moments`).
After each pass the processes merge their statistics layer by layer, each layer on one of them, which
computes its distance.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from loguru import logger
from torch import Tensor
from tqdm import tqdm

from mir_task import budget
from mir_task.distributed import (
    all_gather,
    gather,
    on_every_rank,
    rank,
    stop_if_another_failed,
    world_size,
)
from mir_task.errors import MIRError
from mir_task.measurement import Measurement, measure
from mir_task.meter import MIRMeter, groups_to_leave_out
from mir_task.metric import MeasuredLayer, MIRResult
from mir_task.moments import KnownLayer, LayerStatistics
from mir_task.placement import Document
from mir_task.reader import Reader
from mir_task.settings import Measuring


class Whole(NamedTuple):
    """What all processes measured together."""

    result: MIRResult
    measured: Measurement
    notes: list[str]
    """What a reader of the value should know."""
    seconds: float
    """Wall time of merging and computing."""
    rows: dict[int, tuple[Tensor, Tensor]]
    """By layer number: rows [n, d] of some vision and some text tokens, where they were asked for."""


def measure_together(
    make_reader: Callable[[], Reader],
    documents: list[Document],
    settings: Measuring,
    name: str,
    *,
    bars: bool = True,
) -> Whole:
    """The result of all processes' documents, on each of them.

    Args:
        make_reader: gives what runs this process's model.
        documents: of this process, in the order to run.
        settings: what is measured and how.
        name: of the task, for bars and messages.
        bars: whether process 0 shows progress bars.

    Raises:
        MIRError: on every process alike, when one of them cannot go on.
    """
    reader, plan = _common_plan(make_reader, settings)
    notes = list(plan.notes)
    _log(name, notes)
    todo = deque(plan.passes)
    known: dict[int, KnownLayer] = {}
    done: dict[int, MeasuredLayer] = {}
    own, seconds = Measurement(), 0.0
    while todo:
        numbers = todo.popleft()
        meter = MIRMeter(
            outliers=settings.mir_outliers,
            groups=plan.groups,
            late="raise" if settings.mir_late_outliers == "second_pass" else "count",
            numbers=numbers,
            known=known,
            sample_rows=settings.mir_sample_rows,
            extras=settings.mir_extras,
        )
        with on_every_rank():
            part = measure(
                reader,
                [document for document in documents if document.id not in own.skipped],
                meter,
                {number: plan.devices[number] for number in numbers},
                settings,
                name,
                bars=bars,
            )
            own.merge(part)
            own.seconds += part.seconds
        if (done or known) and any(all_gather(bool(part.skipped))):
            _log(name, ["a document that was counted is left out after all, so all run again"])
            todo = deque(plan.passes)
            done.clear()
            known.clear()
            continue
        started = time.perf_counter()
        left_out = _groups(meter, own, name)
        computed, late = _compute(_share(meter, plan), meter, left_out, f"{name}: layers", bars)
        done |= computed
        seconds += time.perf_counter() - started
        if late:
            known |= late
            todo.appendleft(tuple(sorted(late)))
            moved = f"the outliers' bounds moved in {len(late)} layer(s)"
            _log(name, [f"{moved}, so the documents run once more for them"])
    if plan.groups and not left_out:
        notes.append(f"mir_stderr is N/A: fewer documents than its {plan.groups} groups; set mir_groups")
        _log(name, notes[-1:])
    measured, *others = all_gather(own)
    with on_every_rank():
        for other in others:
            measured.merge(other)
        result = dataclasses.replace(
            MIRResult.of_layers(done.values(), settings.mir_outliers), caption_loss=measured.caption_loss
        )
    if settings.mir_caption_ppl and result.caption_loss is None:
        notes.append(
            f"caption_ppl is N/A: the forwards of {type(reader.model).__name__} return no logits, or "
            "some that are not finite"
        )
        _log(name, notes[-1:])
    rows = {number: layer.rows for number, layer in done.items() if layer.rows is not None}
    return Whole(result, measured, notes, seconds, rows)


def _common_plan(make_reader: Callable[[], Reader], settings: Measuring) -> tuple[Reader, budget.Plan]:
    """The same groups and passes on every process, each with its own reader and devices."""
    with on_every_rank():
        reader = make_reader()
        devices = budget.layer_devices(reader.decoder)
        own = budget.room(devices, settings.mir_host_memory, settings.mir_accelerator_memory)
    room = budget.Room(*(min(sizes) for sizes in zip(*all_gather(own), strict=True)))
    with on_every_rank():
        return reader, budget.plan(devices, budget.shape(reader.decoder), room, settings.mir_groups)


def _groups(meter: MIRMeter, own: Measurement, name: str) -> list[int]:
    """Groups of the jackknife that the documents of all processes make up.

    Raises:
        MIRError: no process has a document.
    """
    parts = all_gather((list(meter.documents.values()), next(iter(own.skipped.values()), None)))
    if not any(groups for groups, _ in parts):
        reason = next((reason for _, reason in parts if reason), "the run has none")
        raise MIRError(f"{name}: no document could be measured; the first: {reason}")
    return groups_to_leave_out([group for groups, _ in parts for group in groups], meter.groups)


def _share(meter: MIRMeter, plan: budget.Plan) -> dict[int, list[LayerStatistics]]:
    """The layers that this process is to compute: the statistics of each process."""
    share = {}
    for position, number in enumerate(meter.numbers or ()):
        layer = meter.layer(number)
        del meter.layers[number]
        parts = gather(layer, to=position % world_size(), device=plan.devices[number])
        if parts is not None:
            share[number] = parts
    return share


def _compute(
    share: dict[int, list[LayerStatistics]],
    meter: MIRMeter,
    left_out: list[int],
    name: str,
    bars: bool,
) -> tuple[dict[int, MeasuredLayer], dict[int, KnownLayer]]:
    """All processes' layers, and what is known of those that take a second pass."""
    computed: dict[int, MeasuredLayer] = {}
    late: dict[int, KnownLayer] = {}
    with on_every_rank():
        for number in tqdm(sorted(share), desc=name, disable=not bars or rank() != 0):
            stop_if_another_failed()
            layer, *others = share.pop(number)
            for other in others:
                layer.merge(other)
            if meter.late == "raise" and layer.needs_second_pass():
                late[number] = layer.known()
            else:
                computed[number] = layer.measured(number, left_out, torch.float64)
    parts = all_gather((computed, late))
    return (
        {number: layer for layers, _ in parts for number, layer in layers.items()},
        {number: layer for _, layers in parts for number, layer in layers.items()},
    )


def _log(name: str, notes: Iterable[str]) -> None:
    for note in notes if rank() == 0 else ():
        logger.warning(f"{name}: {note}")
