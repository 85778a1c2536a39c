"""Scores that VLMEvalKit has written, by model and data set.

Its files are `outputs/MODEL/RUN/MODEL_DATASET_acc.csv` and the like: tables or nested mappings, as each
data set likes, beside files of the same names that hold answers. Read are overall figures; where there
are none, all. See `docs/leaderboard.md`.
"""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mir_task.errors import MIRError

_SCORES = re.compile(r"_(acc|score|rating|metrics|result)\.(csv|xlsx|json)$")
_RUN = re.compile(r"^T(\d{8})(?:-(\d{6})|_G[0-9a-fA-F]+)$")
_OVERALL = {"overall", "all", "final score"}
_UNNAMED = {"", "none", "nan"}
# Columns of a table of answers, which has a row a question.
_ANSWERS = {"index", "prediction"}
_COUNTS = {"tot", "total", "hit", "num", "count", "prefetch", "prefetch_rate", "success", "num_unparsed"}
_UP = {"acc", "accuracy", "score", "f1", "precision", "recall", "avg", "iou", "bleu", "cider", "rouge"}
_UP |= {"perception", "reasoning", "overall", "all"}  # the first two of MME
_DOWN = {"err", "error", "cer", "wer", "mae", "rmse", "edit", "distance"}


class Found(NamedTuple):
    """What one file says."""

    model: str
    date: str
    """Of the run, as far as its folder tells."""
    values: dict[str, float]
    """By data set and metric."""


def is_scores(path: Path) -> bool:
    """Whether a file's name is that of VLMEvalKit's scores."""
    return _SCORES.search(path.name) is not None


def read(path: Path, models: Iterable[str] = ()) -> Found:
    """One file of scores.

    Args:
        path: of the file, in the folder of its model or of a run of that.
        models: names of models that it may be of where it is in no such folder.

    Raises:
        MIRError: it cannot be read, or does not say which model it is of.
    """
    run = _RUN.match(path.parent.name)
    folder = path.parent.parent if run else path.parent
    names = [name for name in (folder.name, *models) if path.name.startswith(f"{name}_")]
    if not names:
        raise MIRError(
            f"{path} has the name of VLMEvalKit's scores, MODEL_DATASET_acc.csv, and is in no folder of "
            "that MODEL: move it there, or name the model by --same_model NAME=MODEL"
        )
    model = folder.name if folder.name in names else max(names, key=len)
    data_set = _SCORES.sub("", path.name.removeprefix(f"{model}_"))
    date = "_".join(part for part in run.groups() if part) if run else ""
    try:
        content = _content(path)
        values = {" ".join(name): value for name, value in _values(content)}
    except MIRError:
        raise
    except Exception as error:  # damaged files raise whatever they like, openpyxl's above all
        raise MIRError(
            f"{path} is no file of VLMEvalKit's scores ({type(error).__name__}: {error})"
        ) from error
    return Found(model, date, {f"{data_set} {name}": value for name, value in values.items()})


def higher_is_better(name: str) -> bool | None:
    """Which way a metric goes, which the files do not say; None where its name does not either."""
    words = set(re.findall(r"[a-z0-9]+", name.casefold()))
    if words & _DOWN:
        return False
    return True if words & _UP or any(word.endswith("acc") for word in words) else None


def _content(path: Path) -> Any:
    """Rows of a table, or a mapping."""
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig")), strict=True))
    try:
        import openpyxl
    except ImportError as error:
        raise MIRError(f"{path} needs openpyxl: pip install 'mir-task[xlsx]'") from error
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    header, *rows = book.worksheets[0].iter_rows(values_only=True)
    book.close()
    return [dict(zip(map(str, header), row, strict=True)) for row in rows]


def _values(content: Any) -> Iterator[tuple[tuple[str, ...], float]]:
    if isinstance(content, Mapping):
        yield from _of_mapping(content)
    elif isinstance(content, list) and content and all(isinstance(row, Mapping) for row in content):
        yield from _of_table(content)
    else:
        raise ValueError("neither rows nor a mapping")


def _of_mapping(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Names and values of what is overall at each depth, or of all."""
    whole = [key for key in content if key.casefold() in _OVERALL]
    for key in whole or content:
        value = content[key]
        if isinstance(value, Mapping):
            parents = () if whole else (key,)
            yield from ((parents + name, each) for name, each in _of_mapping(value))
        elif key.casefold() not in _COUNTS and (number := _number(value)) is not None:
            yield (key,), number


def _of_table(rows: list[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Names and values of the overall row and column, as far as there is one."""
    columns = list(rows[0])
    if set(columns) >= _ANSWERS:
        return
    numeric = [name for name in columns if any(_number(row[name]) is not None for row in rows)]
    labels = [name for name in columns if name not in numeric]
    # A table that counts successes has the number of all questions in a column `overall`.
    counts = _COUNTS | ({"overall"} if "success" in columns else set())
    numeric = [name for name in numeric if name.casefold() not in counts]
    whole_rows = [row for row in rows if any(_text(row[name]) in _OVERALL for name in labels)]
    whole = [name for name in numeric if name.casefold() in _OVERALL]
    # Of several overall rows, such as one a split, the other labels tell which is which.
    plain = _UNNAMED | _OVERALL if whole_rows else _UNNAMED
    named = labels if len(whole_rows) != 1 else []
    for row in whole_rows or rows:
        of_row = tuple(str(row[name]) for name in named if _text(row[name]) not in plain)
        for name in whole or numeric:
            if (number := _number(row[name])) is not None:
                yield (*of_row, name), number


def _text(value: Any) -> str:
    return str("" if value is None else value).strip().casefold()


def _number(value: Any) -> float | None:
    """A number, also as text, in per cent, or behind two counts as `[27, 40, "67.50%"]`."""
    if isinstance(value, list):
        shares = [each for each in value if isinstance(each, str) and each.endswith("%")]
        value = shares[0] if len(shares) == 1 else None
    if isinstance(value, str):
        value = value.strip().removesuffix("%")
    if value is None or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
