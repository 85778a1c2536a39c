"""What a harness's run was called with, and where its files go.

Both harnesses run tasks in a function of one name and with a tracker of one form, so this knows neither.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from loguru import logger

from mir_task.files import versions, write_json
from mir_task.measuring.passes import Measurement
from mir_task.reports.report import write_report

Written = TypeVar("Written")
_TRACKER = "general_config_tracker"
"""Attribute of what writes a harness's results."""

_SECRET = re.compile(r"\b((?!\w*tokenizer)\w*(?:key|token|secret|password|auth)\w*)=[^,]*", re.I)


@dataclass
class Run:
    """The call of the harness that requests come from."""

    model: str
    """What `--model` named."""
    model_args: str | dict[str, Any]
    """Without secrets."""
    model_name: str
    folder: Path | None = None
    """Where its results go; None where it writes none."""
    date: str = ""
    """With which its files begin."""

    @property
    def facts(self) -> dict[str, Any]:
        """For what is written of it."""
        return {"model": self.model, "model_args": self.model_args, "model_name": self.model_name}

    def write(self, name: str, write: Callable[[Path], Written]) -> Written | None:
        """Write files that stand beside the harness's results.

        The harness gives all runs of one Python process the same date unless it is told another, so
        where there are files of that name, those of an earlier run stay and these take the time of day.

        Args:
            name: of the files, without date and ending.
            write: takes a path without its ending; raises FileExistsError where there is such a file.

        Returns:
            What `write` returns; None where the run writes no files.
        """
        if self.folder is None:
            return None
        for date in self._dates():
            try:
                return write(self.folder / f"{date}_{name}")
            except FileExistsError:
                continue
        raise AssertionError("the time does not stand still")

    def conclude(
        self, task: str, keys: Mapping[str, Any], modality: str, adapter: str, measured: Measurement
    ) -> None:
        """Log what was measured of a task, and write its report; a fault of the report is logged.

        Args:
            task: its name.
            keys: its `mir_*` keys.
            modality: of its documents.
            adapter: class of what ran the model.
            measured: by all processes.
        """
        result, log = measured.result, measured.log
        for warning in log.warnings(result, modality):
            logger.warning(f"{task}: {warning}")
        report = {
            "task": task,
            **self.facts,
            "adapter": adapter,
            "settings": keys,
            "versions": versions(),
            **measured.report(modality),
        }
        logger.info(f"{task}: MIR {result.mir:.4f} over {len(log.documents)} documents")
        try:
            rows = measured.sample()
            files = self.write(f"mir_{task}", lambda stem: write_report(stem, result, report, rows))
            if files:
                logger.info(f"{task}: {' and '.join(str(file) for file in files)}")
        except Exception as error:  # noqa: BLE001 - the value still reaches the harness's own JSON
            logger.error(f"{task}: {error}")

    def note_failure(self, task: str, keys: Mapping[str, Any], error: Exception) -> None:
        """Write down why a task has no value."""
        what = {"task": task, **self.facts, "why": str(error), "settings": keys}
        content = {**what, "versions": versions()}
        try:
            self.write(
                f"failed_{task}", lambda stem: write_json(Path(f"{stem}.json"), content, new=True)
            )
        except Exception as failure:  # noqa: BLE001 - of the note alone
            logger.error(f"{task}: {failure}")

    def _dates(self) -> Iterator[str]:
        if self.date:
            yield self.date
        while True:
            now = time.time_ns()
            yield f"{time.strftime('%Y%m%d_%H%M%S', time.localtime(now // 10**9))}_{now % 10**9:09}"


def current_run(lm: Any) -> Run:
    """The run that calls this, as far as it can be told.

    A request is told neither the model's name nor where results go, and the date in the names of the
    result files is in the harness's call alone, so they are read from its frames. What is not found
    there is left to the adapter's name and the time of day.
    """
    run = Run(type(lm).__name__, "", "")
    try:
        _read(run, sys._getframe())
    except Exception as error:  # noqa: BLE001 - the values still reach the harness's own JSON
        logger.error(
            f"the harness's run cannot be read ({type(error).__name__}: {error}); side files "
            f"{'are left out' if run.folder is None else f'go to {run.folder}'}"
        )
    return run


def _read(run: Run, frame: FrameType | None) -> None:
    while frame is not None and frame.f_code.co_name != "simple_evaluate":
        frame = frame.f_back
    values = frame.f_locals if frame is not None else {}
    tracker = next((value for value in values.values() if hasattr(value, _TRACKER)), None)
    if tracker is not None and tracker.output_path:
        run.folder = Path(str(tracker.output_path))  # the harness takes numbers for paths too
        run.folder /= str(tracker.general_config_tracker.model_name_sanitized or "")
    if date := values.get("datetime_str"):
        run.date = str(date).replace(":", "-")
    if isinstance(model := values.get("model"), str):
        run.model = model
    # The harness keeps keys and tokens out of its results; so does the side file.
    redact = (frame.f_globals if frame else {}).get("_redact_eval_config_secrets", without_secrets)
    run.model_args = redact(values.get("model_args") or "")
    name = tracker.general_config_tracker.model_name if tracker is not None else ""
    run.model_name = redact(name or str(run.model_args))


def without_secrets(arguments: Any) -> str:
    """Model arguments as text, without the values of keys that name a secret."""
    if isinstance(arguments, Mapping):
        arguments = ",".join(f"{key}={value}" for key, value in arguments.items())
    return _SECRET.sub(r"\1=[REDACTED]", str(arguments))
