"""What MIR of one model is: numbers of its layers, and what follows from them. No tensors."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, computed_field, model_validator

Thirds = tuple[float | None, float | None, float | None]
"""Of the first, the middle and the last third of the decoder layers."""


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    def __str__(self) -> str:
        return repr(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and None, ready for JSON. `from_dict` is its inverse."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote; keys that are not its own are ignored."""
        return cls.model_validate(values)


class LayerResult(_Numbers):
    """One decoder layer.

    Distances, traces and products are in units of the squared mean text norm; norms are raw.

    Fields that are None were not in the side file that the result was read from, or do not exist for
    these tokens. `docs/diagnostics.md` says what each is for.
    """

    layer: int
    """1-based index of the decoder layer; 0 of the decoder's input."""
    frechet: float
    """F_k, the true Fréchet distance."""
    frechet_error: float | None = None
    """Estimate of the numerical error of `frechet`."""
    frechet_published_fast: float
    """F_k with Tr(S_v S_t) for the root term, as the published default mode has it."""
    mean_term: float
    """||mu_v - mu_t||^2."""
    covariance_term: float
    """Tr(S_v) + Tr(S_t) - 2 Tr((S_v S_t)^(1/2))."""
    text_scale: float
    """alpha_k of the text-centric normalisation: one over the mean raw text norm."""
    vision_tokens: int
    """Vision tokens before the outlier rule."""
    text_tokens: int
    """Text tokens before the outlier rule."""
    vision_outliers: int
    text_outliers: int
    vision_norm: float
    """Mean raw L2 norm of the vision tokens."""
    text_norm: float
    """Mean raw L2 norm of the text tokens."""
    dimensions: int | None = None
    """d, of the hidden states."""
    vision_rms_norm: float | None = None
    """sqrt(||mu_v||^2 + Tr(S_v)), raw, after the outlier rule: the root mean square norm of the Gaussian
    that F_k compares."""
    text_rms_norm: float | None = None
    """Of the text tokens."""
    vision_trace: float | None = None
    """Tr(S_v)."""
    text_trace: float | None = None
    """Tr(S_t)."""
    mean_product: float | None = None
    """mu_v . mu_t."""
    mean_cosine: float | None = None
    """Cosine of mu_v and mu_t; None where one of them is zero."""
    vision_participation_ratio: float | None = None
    """Of S_v, between 1 and d: Tr(S)^2 / Tr(S^2); 0 where all tokens are equal."""
    text_participation_ratio: float | None = None
    """Of S_t."""
    vision_effective_rank: float | None = None
    """Of S_v, between 1 and d: exp of the entropy of its normalised eigenvalues, where `mir_extras` asks
    for `entropy_rank`; this field and those below are None where it does not ask for them."""
    text_effective_rank: float | None = None
    """Of S_t."""
    cka: float | None = None
    """Debiased linear CKA of each document's mean vision and mean text row."""
    cka_stderr: float | None = None
    """Standard error of `cka` by the delete-one-document jackknife."""
    neighbour_overlap: float | None = None
    """Share of each document's 10 nearest neighbours that its mean vision and mean text row have in
    common."""
    token_cosine: float | None = None
    """Mean cosine of a vision and a text token, of up to 1024 tokens of each modality."""
    best_token_cosine: float | None = None
    """Mean over these vision tokens of the largest cosine with a text token."""
    sliced_wasserstein: float | None = None
    """Sliced Wasserstein-2 distance of up to 1024 tokens of each modality, in units of the mean text
    norm."""
    mmd2: float | None = None
    """Unbiased squared MMD of up to 1024 tokens of each modality."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(layer={self.layer}, frechet={self.frechet:.4g}, "
            f"vision_norm={self.vision_norm:.4g}, text_norm={self.text_norm:.4g}, "
            f"vision_tokens={self.vision_tokens}, text_tokens={self.text_tokens})"
        )

    @computed_field
    @property
    def norm_ratio(self) -> float:
        """Mean vision norm over mean text norm."""
        return self.vision_norm / self.text_norm

    @computed_field
    @property
    def centroid_distance(self) -> float:
        """||mu_v - mu_t|| in units of the mean text norm."""
        return math.sqrt(self.mean_term)

    @computed_field
    @property
    def scale_free_distance(self) -> float | None:
        """F_k once each modality is scaled to a root mean square norm of 1: between 0 and 4."""
        if self.vision_rms_norm is None or self.text_rms_norm is None:
            return None
        norms = self.vision_rms_norm * self.text_scale, self.text_rms_norm * self.text_scale
        return scale_free(self.frechet, *norms)

    @computed_field
    @property
    def bures_cosine(self) -> float | None:
        """Bures-Wasserstein cosine: 1 - `scale_free_distance` / 2, between -1 and 1."""
        distance = self.scale_free_distance
        return None if distance is None else 1 - distance / 2

    @computed_field
    @property
    def bures_angle(self) -> float | None:
        """Arc cosine of `bures_cosine`, in radians."""
        return None if self.bures_cosine is None else math.acos(self.bures_cosine)

    @computed_field
    @property
    def vision_tokens_per_dimension(self) -> float | None:
        """At 1 and below, S_v is singular."""
        return self.vision_tokens / self.dimensions if self.dimensions else None

    @computed_field
    @property
    def text_tokens_per_dimension(self) -> float | None:
        """At 1 and below, S_t is singular."""
        return self.text_tokens / self.dimensions if self.dimensions else None


class MIRResult(_Numbers):
    """MIR of one model on one set of documents."""

    layers: tuple[LayerResult, ...] = Field(min_length=1)
    """Decoder layers 1 to K."""
    input_layer: LayerResult | None = None
    """Layer 0, what enters the first decoder layer; it is no part of MIR, nor of anything below."""
    outliers: str = "replace"
    leave_one_group_out: tuple[tuple[float, ...], ...] = ()
    """`[group][layer]`: F_k of all documents but that group's; empty where no groups were kept."""
    scale_free_leave_one_group_out: tuple[tuple[float | None, ...], ...] = ()
    """Likewise the layers' scale-free distances."""
    caption_loss: float | None = None
    """Mean loss of the tokens of the documents' own texts after their media, in nats, where captions are
    measured; a baseline of the paper's figure 1."""
    caption_gain: float | None = None
    """By how much that loss is larger after the medium of another document: what the model takes from
    the own one. In nats a token."""
    caption_gain_stderr: float | None = None
    """By the jackknife that leaves out one document at a time."""
    caption_gains: dict[str, tuple[float, int]] = Field(default_factory=dict, exclude=True)
    """By document, its gain and its tokens; side files have them among their documents."""

    @model_validator(mode="after")
    def _has_a_value(self) -> Self:
        if sum(layer.frechet for layer in self.layers) <= 0:
            raise ValueError("the Fréchet distances sum to zero, of which there is no logarithm")
        return self

    def __repr__(self) -> str:
        parts = [f"mir={self.mir:.4f}"]
        for name in ("mir_stderr", "mir_published_fast", "caption_loss", "caption_gain"):
            if (value := getattr(self, name)) is not None:
                parts.append(f"{name}={value:.4f}")
        return f"{type(self).__name__}({', '.join(parts)}, {len(self.layers)} layers in .layers)"

    @computed_field
    @property
    def mir(self) -> float:
        """log10 of the sum of the layers' Fréchet distances."""
        return math.log10(sum(layer.frechet for layer in self.layers))

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each layer: its part of the sum of distances."""
        total = sum(layer.frechet for layer in self.layers)
        return tuple(layer.frechet / total for layer in self.layers)

    @computed_field
    @property
    def half_layers(self) -> tuple[int, ...]:
        """The fewest layers that hold at least half of the sum of distances, by their numbers."""
        half, held = set[int](), 0.0
        for share, layer in sorted(zip(self.shares, self.layers, strict=True), key=lambda x: -x[0]):
            if held < 0.5:
                half.add(layer.layer)
                held += share
        return tuple(sorted(half))

    @computed_field
    @property
    def mir_published_fast(self) -> Annotated[float, PlainSerializer(_finite_or_none)]:
        """log10 of the sum that the published default mode computes; nan where it is not positive."""
        total = sum(layer.frechet_published_fast for layer in self.layers)
        return math.log10(total) if total > 0 else math.nan

    @computed_field
    @property
    def mir_stderr(self) -> float | None:
        """Standard error of `mir` by the delete-a-group jackknife; None where no groups were kept.

        With MIR_(g) over all documents but group g's, and G groups:
        sqrt((G - 1) / G * sum_g (MIR_(g) - mean)^2).
        """
        return _jackknife(self.left_out_mir)

    @computed_field
    @property
    def mir_thirds(self) -> Thirds:
        """MIR of the first, the middle and the last third of the decoder layers: log10 of their sums.

        Layers floor(K n / 3) + 1 to floor(K (n + 1) / 3), n = 0, 1, 2. None for a third without a layer
        or whose distances sum to zero.
        """
        return _thirds([layer.frechet for layer in self.layers])

    @computed_field
    @property
    def mir_thirds_stderr(self) -> Thirds:
        """Standard error of each of `mir_thirds`, as `mir_stderr`."""
        columns = zip(*map(_thirds, self.leave_one_group_out), strict=True)
        return tuple(_jackknife(column) for column in columns) or (None, None, None)  # type: ignore[return-value]

    @computed_field
    @property
    def scale_free_mir(self) -> float | None:
        """log10 of the sum of the layers' scale-free distances; None where one is not known."""
        return _log_sum([layer.scale_free_distance for layer in self.layers])

    @computed_field
    @property
    def scale_free_mir_stderr(self) -> float | None:
        """Standard error of `scale_free_mir`, as `mir_stderr`."""
        return _jackknife(map(_log_sum, self.scale_free_leave_one_group_out))

    @computed_field
    @property
    def caption_ppl(self) -> float | None:
        """Perplexity of the documents' own texts after their media: exp of `caption_loss`."""
        return None if self.caption_loss is None else math.exp(self.caption_loss)

    @property
    def left_out_mir(self) -> list[float]:
        """MIR over all documents but one group's, for each group."""
        return [math.log10(sum(distances)) for distances in self.leave_one_group_out]

    def to_dict(self) -> dict[str, Any]:
        """As of a layer; each layer's has its share too."""
        values = super().to_dict()
        for layer, share in zip(values["layers"], self.shares, strict=True):
            layer["share"] = share
        return {"mir": self.mir, **values}


def scale_free(distance: float, vision: float, text: float) -> float | None:
    """Fréchet distance of two Gaussians once each is divided by its root mean square norm.

    For F = a^2 + b^2 - 2 c, with c the inner product of the means and the root term together, it is
    2 - 2 c / (a b) = (F - (a - b)^2) / (a b).

    Args:
        distance: F, in the square of the unit of the norms.
        vision: root mean square norm a.
        text: root mean square norm b.

    Returns:
        Between 0 and 4; None where a norm is zero.
    """
    product = vision * text
    return min(max((distance - (vision - text) ** 2) / product, 0.0), 4.0) if product else None


def _log_sum(distances: Sequence[float | None]) -> float | None:
    """log10 of a sum; None where a term is missing or the sum is zero."""
    known = [distance for distance in distances if distance is not None]
    return math.log10(sum(known)) if len(known) == len(distances) and sum(known) > 0 else None


def _thirds(distances: Sequence[float]) -> Thirds:
    cuts = [len(distances) * n // 3 for n in range(4)]
    first, middle, last = (_log_sum(distances[a:b]) for a, b in itertools.pairwise(cuts))
    return first, middle, last


def _jackknife(values: Iterable[float | None]) -> float | None:
    """As `jackknife_stderr`; None of fewer than two values, or where one does not exist."""
    found = list(values)
    known = [value for value in found if value is not None]
    return jackknife_stderr(known) if len(known) == len(found) > 1 else None


def jackknife_stderr(values: Sequence[float]) -> float:
    """Standard error of a figure from its values without one group of documents each, two at least.

    Groups may be of one document.
    """
    count, mean = len(values), sum(values) / len(values)
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in values))
