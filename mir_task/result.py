"""What MIR of one model is: numbers of its layers, and what follows from them. No tensors."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, computed_field, model_validator


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Numbers(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and None, ready for JSON. `from_dict` is its inverse."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The result that `to_dict` wrote; keys that are not its own are ignored."""
        return cls.model_validate(values)


class LayerResult(_Numbers):
    """One decoder layer. Distances are in units of the squared mean text norm, norms are raw.

    Fields that are None were not in the side file that the result was read from, or do not exist for
    these tokens. `docs/diagnostics.md` says what each is for.
    """

    layer: int
    """1-based index of the decoder layer."""
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
    mean_cosine: float | None = None
    """Cosine of mu_v and mu_t; None where one of them is zero."""
    vision_participation_ratio: float | None = None
    """Of S_v, between 1 and d: Tr(S)^2 / Tr(S^2); 0 where all tokens are equal."""
    text_participation_ratio: float | None = None
    """Of S_t."""
    vision_effective_rank: float | None = None
    """Of S_v, between 1 and d: exp of the entropy of its normalised eigenvalues, where `mir_extras` asks
    for `entropy_rank`."""
    text_effective_rank: float | None = None
    """Of S_t."""
    cka: float | None = None
    """Linear CKA of each document's mean vision and mean text row, where `mir_extras` asks for it."""
    mmd2: float | None = None
    """Unbiased squared MMD of up to 1024 tokens of each modality, where `mir_extras` asks for it."""

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
    outliers: str = "replace"
    leave_one_group_out: tuple[tuple[float, ...], ...] = ()
    """[group][layer]: F_k of all documents but that group's; empty where no groups were kept."""
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
        return jackknife_stderr(self.left_out_mir) if len(self.left_out_mir) > 1 else None

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


def jackknife_stderr(values: Sequence[float]) -> float:
    """Standard error of a figure from its values without one group of documents each, two at least."""
    count, mean = len(values), sum(values) / len(values)
    return math.sqrt((count - 1) / count * sum((value - mean) ** 2 for value in values))
