"""The scores of a MIR task in a harness's results; knows no harness."""

from collections.abc import Callable, Sequence
from typing import Any

from mir_task.result import MIRResult
from mir_task.settings import MeasureSettings

METRICS = ("mir", "mir_published_fast", "mir_stderr")
CAPTION_METRICS = ("caption_loss", "caption_ppl")
GAIN_METRICS = ("caption_gain", "caption_gain_stderr")


def metrics_of(settings: MeasureSettings) -> tuple[str, ...]:
    """Names of the scores that a task has."""
    return (
        *METRICS,
        *(CAPTION_METRICS if settings.measures_captions else ()),
        *(GAIN_METRICS if settings.measures_gain else ()),
    )


def aggregation(
    metrics: Sequence[str], result: MIRResult | None
) -> dict[str, Callable[[list[Any]], Any]]:
    """What gives each score, whatever the harness hands it; N/A of no result."""
    values = {} if result is None else result.to_dict()

    def aggregate(metric: str) -> Callable[[list[Any]], Any]:
        value = values.get(metric)
        return lambda items: "N/A" if value is None else value

    return {metric: aggregate(metric) for metric in metrics}


def higher_is_better(metrics: Sequence[str]) -> dict[str, bool]:
    """Lower is better, but for caption gain."""
    return {metric: metric == "caption_gain" for metric in metrics}


def of_document(metrics: Sequence[str], counts: dict[str, int]) -> dict[str, Any]:
    """The token counts of a document; dictionaries, which no harness averages."""
    own = {key: count for key, count in counts.items() if key != "tokens"}
    return {**{metric: {} for metric in metrics}, METRICS[0]: own}
