"""What a measurement leaves on disk: side file, picture, and some tokens where asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mir_task.files import write_json
from mir_task.reports import plot
from mir_task.reports.side_file import SideFile
from mir_task.result import MIRResult
from mir_task.settings import TOKENS


def write_report(
    stem: Path, result: MIRResult, run: Mapping[str, Any], rows: plot.TokenRows | None = None
) -> list[Path]:
    """Write `stem`.json, `stem`.png and `stem`.npz, each whole or not at all, and return the paths.

    Args:
        stem: path without its suffix; folders are made.
        result: of the measurement.
        run: what was measured and how: the other fields of `SideFile`.
        rows: of some vision and some text tokens; without any there is no `stem`.npz.
    """
    report = SideFile.model_validate({**result.to_dict(), **run})
    data, picture, sample = (stem.with_name(f"{stem.name}.{end}") for end in ("json", "png", "npz"))
    write_json(data, report.to_dict())
    title, tokens = plot.title_of(report), TOKENS[report.modality]
    plot.draw_layers({report.model_name: report}, picture, title=title, tokens=tokens)
    return [data, picture, *([plot.write_rows(sample, rows, title, tokens)] if rows else [])]
