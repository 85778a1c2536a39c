"""MIR and caption gain of a model as `model-index` metadata of its Hugging Face model card."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mir_task.errors import MIRError
from mir_task.files import written_whole
from mir_task.reports.records import Record
from mir_task.reports.side_file import read_side_file

_METRICS = {
    "mir": "MIR, lower is better",
    "mir_published_fast": "MIR in the published fast mode, lower is better",
    "caption_gain": "Caption gain in nats a token, higher is better",
    "caption_loss": "Caption loss in nats a token, lower is better",
}
# An id of a data set on the Hub, and neither a path nor a file.
_ON_THE_HUB = re.compile(r"(?:[\w-][\w.-]*/)?[\w-][\w.-]*")
_DECIMALS = 6


def results(record: Record) -> list[EvalResult]:
    """What a card says of one measurement.

    Args:
        record: of a side file.

    Returns:
        A result a metric; how it was measured stands in the arguments of its data set and its metric.
        The configuration of the data set is the task's name, which tells measurements apart.
    """
    assert record.ground is not None
    report, ground = read_side_file(record.path), record.ground.plain()
    values = report.to_dict()
    measured = {
        **{key: ground[key] for key in ("placement", "outliers", "layers", "hidden_size")},
        "dtype": report.hidden_dtype,
        "vision_tokens": report.layers[0].vision_tokens,
        "text_tokens": report.layers[0].text_tokens,
        "adapter": report.adapter,
        **{name.replace("-", "_"): of for name, of in report.versions.items()},
    }
    media, text = (_data_set(report.settings.get(f"mir_{of}_dataset")) for of in ("media", "text"))
    documents = {key: ground[key] for key in ("documents", "document_set", "text")}
    found = []
    for metric, name in _METRICS.items():
        if values.get(metric) is None:
            continue
        stderr = values.get(f"{metric}_stderr")
        found.append(
            EvalResult(
                task_type=f"{record.ground.modality}-text-to-text",
                task_name="Modality integration",
                dataset_type=media or record.task,
                dataset_name=f"{record.task}, {ground['documents']} documents",
                dataset_config=record.task,
                dataset_split=report.settings.get("mir_media_split") if media else None,
                dataset_args={**documents, **({"text_dataset": text} if text else {})},
                metric_type=metric,
                metric_name=name,
                metric_value=round(values[metric], _DECIMALS),
                metric_args={
                    **({} if stderr is None else {"stderr": round(stderr, _DECIMALS)}),
                    **measured,
                },
            )
        )
    return found


def _data_set(named: Any) -> str | None:
    """The first id on the Hub of what a task names; None of files, whose paths are nobody's business."""
    ids = [named] if isinstance(named, str) else named or []
    return next((str(n) for n in ids if _ON_THE_HUB.fullmatch(str(n)) and not Path(n).exists()), None)


def updated(readme: Path | None, name: str, new: Sequence[EvalResult]) -> ModelCard:
    """A card with results put in, in the place of earlier ones of the same metrics and tasks.

    Args:
        readme: the card so far; a new one where there is none.
        name: of the model, for a card that has none in its metadata.
        new: its results.

    Raises:
        MIRError: the card so far cannot be read.
    """
    if readme is None or not readme.exists():
        card = ModelCard(f"---\n{{}}\n---\n\n# {name}\n")
    else:
        try:
            card = ModelCard.load(readme)
        except Exception as error:  # YAML's, huggingface_hub's or the file system's
            raise MIRError(f"{readme} is no model card: {type(error).__name__}: {error}") from error
    data: ModelCardData = card.data
    kept = [of for of in data.eval_results or () if not any(_same(of, other) for other in new)]
    data.eval_results = [*kept, *new]
    data.model_name = data.model_name or name
    return card


def _same(one: EvalResult, other: EvalResult) -> bool:
    return (one.unique_identifier, one.metric_type) == (other.unique_identifier, other.metric_type)


def write(card: ModelCard, readme: Path) -> None:
    """Save a card, whole or not at all."""
    with written_whole(readme) as partial:
        card.save(partial)


def of_one_model(records: Iterable[Record], model: str | None) -> list[Record]:
    """The newest measurement of each task of one model.

    Args:
        records: as found on disk, oldest first.
        model: its name; where left out, there is one model.

    Raises:
        MIRError: there is none of that name, or several to choose from, or it was loaded in several
            ways.
    """
    whole = [record for record in records if record.ground is not None]
    names = sorted({record.model.name for record in whole})
    if not names:
        raise MIRError(
            "no side file, <date>_mir_<task>.json, is there: run lmms-eval with --output_path"
        )
    if model is None and len(names) > 1:
        raise MIRError(f"there are several models; name one by --model: {', '.join(names)}")
    chosen = model or names[0]
    if chosen not in names:
        raise MIRError(f"no model {chosen!r} is there; there are {', '.join(names)}")
    newest = {record.task: record for record in whole if record.model.name == chosen}.values()
    if len(ways := {(of.model.adapter, of.model.arguments) for of in newest}) > 1:
        loaded = "; ".join(sorted(f"{adapter} {','.join(sorted(of))}" for adapter, of in ways))
        raise MIRError(
            f"{chosen} was loaded in {len(ways)} ways for its tasks: {loaded}. One card tells of one: "
            "give the side file, or a folder of those that belong together"
        )
    return list(newest)
