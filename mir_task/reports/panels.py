"""What is drawn over the layers: panels of curves, and the diagnostics that there are."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from mir_task.result import MIRResult, jackknife_stderr

VISION, TEXT = "#D55E00", "#0072B2"


class Curve(NamedTuple):
    """A key of a layer in `MIRResult.to_dict`; its colour is for where one model has a panel alone."""

    key: str
    label: str
    colour: str


class Panel(NamedTuple):
    """Some curves over the layers."""

    label: str
    curves: tuple[Curve, ...]
    log: bool = True
    of_input: bool = False
    """Whether the decoder's input is drawn too, as layer 0."""
    from_zero: bool = False
    """Whether the axis begins at 0."""

    def axis_label(self, tokens: str, *, errors: bool) -> str:
        """What the axis shows, and how.

        Args:
            tokens: what the tokens that are compared with text are called.
            errors: whether some curves have error bars.
        """
        notes = [*(["log scale"] if self.log else []), *(["bars: standard error"] if errors else [])]
        return "\n".join(filter(None, (self.label.format(tokens=tokens), "; ".join(notes))))

    def layers(self, content: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Those to draw of what `MIRResult.to_dict` gives."""
        first: dict[str, Any] | None = content["input_layer"]
        drawn = first is not None and all(first.get(c.key) is not None for c in self.curves)
        return [*([first] if first is not None and drawn and self.of_input else []), *content["layers"]]


DISTANCE = Curve("frechet", "$F_k$", "#000000")
TERMS = (
    Curve("mean_term", "mean term", "#009E73"),
    Curve("covariance_term", "covariance term", "#CC79A7"),
)
UNIT = "(text norm = 1)"


def _of_both(key: str, label: str, *, of_input: bool = True) -> Panel:
    tokens = (("vision", "{tokens} tokens", VISION), ("text", "text tokens", TEXT))
    curves = tuple(Curve(f"{of}_{key}", name, colour) for of, name, colour in tokens)
    return Panel(label, curves, of_input=of_input)


def _single(key: str, label: str, *, log: bool = True) -> Panel:
    return Panel(label, (Curve(key, label, "#000000"),), log, of_input=True)


NORMS = _of_both("norm", "mean L2 norm", of_input=False)
DIAGNOSTICS = {
    "share": _single("share", "share of the sum of distances", log=False)._replace(from_zero=True),
    "norm_ratio": _single("norm_ratio", "{tokens} norm / text norm"),
    "centroid_distance": _single("centroid_distance", f"distance of the means {UNIT}"),
    "mean_cosine": _single("mean_cosine", "cosine of the means", log=False),
    "rms_norm": _of_both("rms_norm", "root mean square norm"),
    "trace": _of_both("trace", f"trace of the covariance {UNIT}"),
    "scale_free_distance": _single("scale_free_distance", "scale-free distance"),
    "bures_angle": _single("bures_angle", "Bures angle (radians)", log=False),
    "participation_ratio": _of_both("participation_ratio", "participation ratio"),
    "effective_rank": _of_both("effective_rank", "effective rank"),
    "cka": _single("cka", "linear CKA of documents", log=False),
    "neighbour_overlap": _single("neighbour_overlap", "overlap of nearest neighbours", log=False),
    "token_cosine": Panel(
        "cosine of tokens",
        (Curve("token_cosine", "all pairs", "#000000"), Curve("best_token_cosine", "best match", TEXT)),
        log=False,
        of_input=True,
    ),
    "sliced_wasserstein": _single("sliced_wasserstein", f"sliced Wasserstein-2 distance {UNIT}"),
    "mmd2": _single("mmd2", "squared MMD", log=False),
}
"""What `draw_layers` can draw beside distances and norms; fields are in `docs/diagnostics.md`."""


def standard_errors(result: MIRResult, key: str) -> dict[int, float]:
    """Standard errors of a curve, by the delete-a-group jackknife over documents.

    Args:
        result: of a model.
        key: of the curve.

    Returns:
        By layer number; empty where the result has no values without single groups.
    """
    if key == "cka":
        layers = [*([result.input_layer] if result.input_layer else []), *result.layers]
        return {layer.layer: layer.cka_stderr for layer in layers if layer.cka_stderr is not None}
    distances, scale_free = result.leave_one_group_out, result.scale_free_leave_one_group_out
    left_out: Iterable[Iterable[float | None]] = {
        "frechet": distances,
        "share": [[distance / sum(group) for distance in group] for group in distances],
        "scale_free_distance": scale_free,
        "bures_angle": [
            [None if distance is None else math.acos(1 - distance / 2) for distance in group]
            for group in scale_free
        ],
    }.get(key, ())
    columns = zip(*left_out, strict=True)
    return {
        layer.layer: jackknife_stderr(column)
        for layer, column in zip(result.layers, columns, strict=False)
        if len(column) > 1 and None not in column
    }
