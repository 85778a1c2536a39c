"""What `mir-task states` does: measure on all processes of a launcher, write on the first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from mir_task.measuring.processes import rank
from mir_task.states import report
from mir_task.states.measure import measure_states


def run(folders: Sequence[Path], output_path: Path | None, options: Mapping[str, Any]) -> str:
    """Measure some folders, and write side file and picture where a folder for them is given.

    Args:
        folders: of hidden states.
        output_path: for side file and picture.
        options: keyword arguments of `from_states`.

    Returns:
        What a person is told; nothing on processes but the first.

    Raises:
        MIRError: as `from_states`, or a file that cannot be written.
    """
    PartialState()  # connects the processes of a launcher
    measured = measure_states(folders, **options)
    if rank() > 0:
        return ""
    files = [] if output_path is None else report.write(measured, output_path)
    result, log = measured.measurement.result, measured.measurement.log
    error = "" if result.mir_stderr is None else f" ± {result.mir_stderr:.4f}"
    lines = [
        f"{measured.name}: MIR {result.mir:.4f}{error}, published fast {result.mir_published_fast:.4f}, "
        f"over {len(log.documents)} documents of {measured.manifest.model}",
        *map(str, files),
    ]
    return "\n".join(lines)
