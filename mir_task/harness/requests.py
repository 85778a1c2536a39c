"""The request type `mir_prefill`: the harness's requests measured, and what is written of them."""

import contextlib
import functools
import itertools
import os
import random
import textwrap
from collections.abc import Iterator

import numpy as np
import torch
from lmms_eval.api.model import lmms
from loguru import logger

from mir_task.documents.document import Document
from mir_task.errors import MIRError
from mir_task.harness.adapter import Adapter
from mir_task.harness.output import Run, current_run
from mir_task.harness.task import SPLIT, FailedTask, MIRTask, Request
from mir_task.measuring.passes import Measurement, measure_together
from mir_task.measuring.processes import all_gather, on_every_rank, rank, wait_for_results


def mir_prefill(lm: lmms, requests: list[Request]) -> list[tuple[str, dict[str, int]]]:
    """Answer MIR's requests on a loaded adapter; `getattr(lm, "mir_prefill")` of the evaluator.

    One call holds the requests of all MIR tasks of the run. Each task is measured, merged over the
    processes and written to disk before the next, also where one before it cannot be measured: that
    one's scores are N/A, and the reason stands in the log and in a file beside the results.

    Raises:
        MIRError: on every process, where no task of the run has anything to show.
    """
    wait_for_results()
    run = current_run(lm)
    of_task: dict[MIRTask, list[Request]] = {}
    for request in requests:
        of_task.setdefault(request.task, []).append(request)
    failures: list[Exception] = []
    failed: dict[MIRTask, Exception] = {}
    """Those that were measured in vain."""
    with _random_state_kept():
        try:
            tasks = _agreed(list(of_task))
        except MIRError as error:  # processes that cannot be merged
            tasks, failures = [], [error]
            for task in of_task:
                _fail(task, run, error, chief=os.environ.get("RANK", "0") == "0")
        for task in tasks:
            try:
                _measure(lm, task, of_task[task], run)
            except Exception as error:  # noqa: BLE001 - told here, as on every other process
                before = any(_reason(task, error) == _reason(*other) for other in failed.items())
                failures.append(error)
                failed[task] = error
                _fail(task, run, error, chief=rank() == 0, told=before)
    if failures and all(task.alone and task.result is None for task in of_task):
        raise failures[0]
    return [r.task.answer(r.task.test_docs()[r.doc_id]["id"]) for r in requests]


def _agreed(tasks: list[MIRTask]) -> list[MIRTask]:
    """The tasks in an order that is the same on every process.

    Raises:
        MIRError: the processes were started on different tasks, or are not connected.
    """
    names = [task.name for task in tasks]
    everywhere = list(dict.fromkeys(itertools.chain(*all_gather(names))))
    with on_every_rank():
        if missing := set(everywhere) - set(names):
            raise MIRError(f"this process was given no request of {', '.join(sorted(missing))}")
    return sorted(tasks, key=lambda task: everywhere.index(task.name))


def _measure(lm: lmms, task: MIRTask, requests: list[Request], run: Run) -> None:
    """Measure one task on all processes together, and have it and the first write what came out."""
    with on_every_rank():
        if task.failure is not None:
            raise task.failure
    with _documents_at_hand(lm, task):
        make = functools.partial(Adapter, lm, task.settings)
        documents = list(adapter_documents(task, requests))
        measured = measure_together(make, documents, task.settings, task.name)
    with on_every_rank():
        if rank() == 0:
            _conclude(lm, task, measured, run)
    keys = ("tokens", "vision_tokens", "text_tokens")
    seen = measured.log.documents.items()
    task.token_counts = {name: {key: of[key] for key in keys} for name, of in seen}
    task.result = measured.result


def _reason(task: MIRTask, error: Exception) -> str:
    """Why a task cannot be measured, without its name."""
    return str(error).removeprefix(f"{task.name}: ")


def _fail(task: MIRTask, run: Run, error: Exception, *, chief: bool, told: bool = False) -> None:
    """Leave a task without a value; one process writes down why, `told` of another task or not."""
    if not isinstance(task, FailedTask):  # of which it was told when it was loaded
        reason = _reason(task, error)
        if told:
            start = textwrap.shorten(reason, 100, placeholder=" …")
            reason = f"for the same reason as a task before it ({start})"
        logger.error(f"{task.name}: {reason}")
    task.failure = error
    if chief:
        run.note_failure(task.name, task.keys, error)


@contextlib.contextmanager
def _documents_at_hand(lm: lmms, task: MIRTask) -> Iterator[None]:
    """Have the adapter find the task's documents, by the task's name, then what it found before."""
    before = dict(lm.task_dict)
    lm.task_dict[task.name] = task.dataset
    try:
        yield
    finally:
        lm.task_dict.clear()
        lm.task_dict.update(before)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Leave random numbers as they were, so that benchmarks which sample give what they give alone."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - the harness seeds it
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = range(torch.cuda.device_count()) if in_use else []
    with torch.random.fork_rng(list(devices)):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002


def adapter_documents(task: MIRTask, requests: list[Request]) -> Iterator[Document]:
    """The documents of a process's requests, in their order.

    `--repeats` sends a document several times, and the harness fills processes up with copies of their
    last request.
    """
    rows = task.test_docs()
    for row in sorted({request.doc_id for request in requests if request.counts}):
        values = rows[row]
        gains = task.settings.measures_gain and task.has_other_visual(row)
        yield Document(
            *(values["id"], row, values["text"], task.doc_to_visual, task.name, SPLIT, values["fault"]),
            to_other_media=task.doc_to_other_visual if gains else None,
        )


def documents_of(lm: lmms, task: MIRTask) -> list[Document]:
    """The documents of a task for a loaded adapter, outside a run of the harness."""
    task.build_all_requests()
    lm.task_dict[task.name] = task.dataset
    return list(adapter_documents(task, task.instances))


def _conclude(lm: lmms, task: MIRTask, measured: Measurement, run: Run) -> None:
    """Write the task's report."""
    adapter = f"{type(lm).__module__}.{type(lm).__name__}"
    run.conclude(task.name, task.keys, task.settings.modality, adapter, measured)
