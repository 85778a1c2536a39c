"""The request type `mir_prefill` of lm-evaluation-harness."""

import functools
import sys
from types import FrameType
from typing import Any

from lm_eval.api.model import LM
from loguru import logger

from mir_task.harness.lm_eval.adapter import Adapter
from mir_task.harness.lm_eval.task import MIRTask, Request
from mir_task.harness.output import Run, current_run
from mir_task.measuring.library import undisturbed
from mir_task.measuring.passes import measure_together
from mir_task.measuring.processes import on_every_rank, rank, wait_for_results, world_size


def mir_prefill(lm: LM, requests: list[Request]) -> list[str]:
    """Answer MIR's requests on a loaded adapter; `getattr(lm, "mir_prefill")` of the evaluator.

    Each task is measured and written to disk before the next. One that cannot be measured has N/A as
    its scores, and the reason in the log and in a file beside the results.

    Raises:
        MIRError: on every process, where no task of the run has anything to show.
    """
    wait_for_results()
    run = current_run(lm)
    if run.folder is not None and run.folder.parent.suffix == ".json":
        run.folder = run.folder.parent.parent  # results go to a file, not into a folder
    of_task: dict[MIRTask, list[Request]] = {}
    for request in requests:
        of_task.setdefault(request.task, []).append(request)
    failures: list[Exception] = []
    for task, own in of_task.items():
        try:
            _measure(lm, task, own, run)
        except Exception as error:  # noqa: BLE001 - told here, as on every other process
            failures.append(error)
            logger.error(f"{task.name}: {str(error).removeprefix(f'{task.name}: ')}")
            if rank() == 0:
                run.note_failure(task.name, task.keys, error)
    if failures and all(task in of_task and task.result is None for task in _tasks_of_the_run()):
        raise failures[0]
    return [request.task.answer(request.doc) for request in requests]


def _tasks_of_the_run() -> list[Any]:
    """All tasks of the run, those of others included, which only the frame of the evaluator has."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "evaluate":
        frame = frame.f_back
    tasks = {} if frame is None else frame.f_locals.get("eval_tasks", {})
    return list(tasks.values())


def _measure(lm: LM, task: MIRTask, requests: list[Request], run: Run) -> None:
    """Measure one task on all processes together, and have it and the first write what came out."""
    with on_every_rank():
        documents = list(task.documents(requests))
        if lm.world_size == 1:  # the harness shares documents among GPUs alone: each process has all
            documents = documents[rank() :: world_size()]
        model = lm.model
    with undisturbed(model):
        make = functools.partial(Adapter, lm, task.settings)
        measured = measure_together(make, documents, task.settings, task.name)
    with on_every_rank():
        if rank() == 0:
            adapter = f"{type(lm).__module__}.{type(lm).__name__}"
            run.conclude(task.name, task.keys, task.settings.modality, adapter, measured)
    keys = ("tokens", "vision_tokens", "text_tokens")
    seen = measured.log.documents.items()
    task.token_counts = {name: {key: of[key] for key in keys} for name, of in seen}
    task.result = measured.result
