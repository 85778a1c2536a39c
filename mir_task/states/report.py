"""The side file of stored hidden states, which leaderboard, compare and plot read as any other."""

import time
from pathlib import Path

from mir_task.files import versions
from mir_task.reports.report import write_report
from mir_task.states.layout import encoded
from mir_task.states.measure import Measured


def write(measured: Measured, folder: Path) -> list[Path]:
    """Write side file, picture, and rows where they were asked for, and return their paths.

    Raises:
        MIRError: a file cannot be written, by name.
    """
    manifest, measurement = measured.manifest, measured.measurement
    report = {
        "task": measured.name,
        "model": manifest.engine,
        "model_args": f"fingerprint={manifest.fingerprint}" if manifest.fingerprint else "",
        "model_name": manifest.model,
        "adapter": "mir_task.states",
        "settings": measured.settings.keys(),
        "versions": versions(),
        **measurement.report(manifest.modality),
    }
    date = time.strftime("%Y%m%d_%H%M%S")
    name = encoded(measured.name)
    stem = folder / f"{date}_mir_{name}"
    try:
        return write_report(stem, measurement.result, report, measurement.sample())
    except FileExistsError:
        stem = folder / f"{date}_{time.time_ns() % 10**9:09}_mir_{name}"
        return write_report(stem, measurement.result, report, measurement.sample())
