"""What a measurement leaves on disk: side file, picture, and some tokens where asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mir_task.errors import MIRError
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

    Raises:
        FileExistsError: there is a `stem`.json; nothing is written.
        MIRError: a file cannot be written, by name; the others are.
    """
    report = SideFile.model_validate({**result.to_dict(), **run})
    data, picture, sample = (stem.with_name(f"{stem.name}.{end}") for end in ("json", "png", "npz"))
    title, tokens = plot.title_of(report), TOKENS[report.modality]
    ways: dict[Path, Callable[[], object]] = {
        data: lambda: write_json(data, report.to_dict(), new=True),
        picture: lambda: plot.draw_layers(
            {report.model_name: report}, picture, title=title, tokens=tokens
        ),
    }
    if rows:
        ways[sample] = lambda: plot.write_rows(sample, rows, title, tokens)
    if data.exists():
        raise FileExistsError(str(data))
    failures = []
    for path, write in ways.items():
        try:
            write()
        except FileExistsError:
            raise
        except Exception as error:  # noqa: BLE001 - named below, after the other files
            failures.append(f"{path} could not be written ({type(error).__name__}: {error})")
    if failures:
        raise MIRError("; ".join(failures))
    return list(ways)
