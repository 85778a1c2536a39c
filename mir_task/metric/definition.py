r"""The Modality Integration Rate of arXiv 2410.07167 (section 3), on tensors and nothing else.

For decoder layer :math:`k = 1..K`, vision tokens :math:`f_v` [r, d] and text tokens :math:`f_t` [s, d]
pooled over all documents:

1. text-centric normalisation (eq. 2): both are multiplied by
   :math:`\alpha_k = s / \sum_j \lVert f_{t,j} \rVert_2`, over the raw text tokens, outliers included;
2. 3-sigma rule :math:`\omega`, per modality, on the L2 norms: token i is an outlier when
   :math:`|\lVert x_i \rVert - \mathrm{median}| > 3\,\mathrm{std}` (unbiased std, lower median);
3. Fréchet distance :math:`F_k = \lVert \mu_v - \mu_t \rVert^2 + \mathrm{Tr}(\Sigma_v) +
   \mathrm{Tr}(\Sigma_t) - 2\,\mathrm{Tr}((\Sigma_v \Sigma_t)^{1/2})`, covariances with n - 1;
4. :math:`\mathrm{MIR} = \log_{10} \sum_k F_k`. Lower is better.

`mir_published_fast` is what the default mode of the published code evaluates, in exact arithmetic:
its iteration for the square root starts at a fixed point, so it subtracts
:math:`2\,\mathrm{Tr}(\Sigma_v \Sigma_t)` instead of the root term. It exists to be laid beside
published figures, never to be mixed with `mir`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mir_task.errors import MIRError
from mir_task.metric.diagnostics import cosine, participation_ratio, rms_norm
from mir_task.metric.frechet import FrechetTerms, Gaussian, frechet_terms
from mir_task.result import LayerResult, MIRResult, scale_free

OUTLIER_RULES = ("replace", "drop")


def outlier_mask(norms: Tensor) -> Tensor:
    """3-sigma rule on L2 norms [n]: True where |norm - lower median| > 3 unbiased std."""
    return (norms - norms.median()).abs() > 3 * norms.std()


def without_outliers(tokens: Tensor, mask: Tensor, rule: str) -> Tensor:
    """Tokens [n, d] with the masked rows replaced by the per-dimension lower median, or dropped."""
    if rule == "drop":
        return tokens[~mask]
    if not mask.any():
        return tokens
    return torch.where(mask.unsqueeze(1), tokens.median(0).values, tokens)


def check_outlier_rule(rule: str) -> None:
    """Raise MIRError unless `rule` is one that this module knows."""
    if rule not in OUTLIER_RULES:
        raise MIRError(f"outliers must be one of {', '.join(OUTLIER_RULES)}, got {rule!r}")


def check_dtype(dtype: torch.dtype | None) -> None:
    """Raise MIRError unless the root of the covariances can be taken in `dtype`."""
    if dtype not in (None, torch.float32, torch.float64):
        raise MIRError(f"dtype must be None, torch.float32 or torch.float64, got {dtype}")


def as_rows(layers: Any, modality: str) -> list[Tensor]:
    """The rows of each layer as tensors; numpy arrays are taken too.

    Args:
        layers: one tensor or array [tokens, d] a layer.
        modality: of the tokens, for messages.

    Raises:
        MIRError: a layer is neither.
    """
    if not isinstance(layers, Iterable) or isinstance(layers, str | Mapping):
        raise MIRError(
            f"{modality} is of type {type(layers).__name__}: pass one tensor [tokens, d] a layer"
        )
    found = []
    for number, rows in enumerate(layers, start=1):
        if isinstance(rows, np.ndarray) and rows.dtype.kind in "fiu":
            whole = rows.flags.writeable and min(rows.strides, default=0) >= 0
            rows = torch.from_numpy(rows if whole else rows.copy())
        if not isinstance(rows, Tensor):
            raise MIRError(
                f"layer {number}: {modality} is of type {type(rows).__name__}: pass a tensor or a numpy "
                "array [tokens, d]"
            )
        found.append(rows.detach())
    return found


def check_rows(vision: Sequence[Tensor], text: Sequence[Tensor]) -> None:
    """Raise MIRError unless both hold one floating [tokens, d] tensor a layer, with equal d."""
    if len(vision) != len(text) or len(vision) == 0:
        raise MIRError(
            "vision and text must hold one tensor a decoder layer, as many of one as of the other: "
            f"got {len(vision)} vision and {len(text)} text layers"
        )
    for layer, (vision_rows, text_rows) in enumerate(zip(vision, text, strict=True), start=1):
        for modality, rows in (("vision", vision_rows), ("text", text_rows)):
            if rows.ndim != 2 or not rows.is_floating_point():
                raise MIRError(
                    f"layer {layer}: {modality} must be a floating-point tensor [tokens, d], "
                    f"got {rows.dtype} {list(rows.shape)}"
                )
        if vision_rows.shape[1] != text_rows.shape[1]:
            raise MIRError(
                f"layer {layer}: vision tokens have {vision_rows.shape[1]} dimensions, "
                f"text tokens {text_rows.shape[1]}"
            )


def token_norms(layers: Mapping[str, Mapping[int, Tensor]]) -> dict[str, list[Tensor]]:
    """L2 norms [n], float64, of tokens [n, d] by modality and layer number, on the tokens' devices.

    An accelerator is waited for once.

    Raises:
        MIRError: NaN or infinity among the tokens, which their norms show.
    """
    norms: dict[str, list[Tensor]] = {}
    for modality, of_layers in layers.items():
        norms[modality] = [
            torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64) for rows in of_layers.values()
        ]
    together: dict[torch.device, list[Tensor]] = {}
    for part in (part for parts in norms.values() for part in parts):
        together.setdefault(part.device, []).append(part)
    if all(bool(torch.cat(parts).isfinite().all()) for parts in together.values()):
        return norms
    layer, modality = next(
        (number, modality)
        for modality, parts in norms.items()
        for number, part in zip(layers[modality], parts, strict=True)
        if not part.isfinite().all()
    )
    dtype = next(iter(layers[modality].values())).dtype
    way = (
        "float16 overflows in many models: load the model in bfloat16 or float32"
        if dtype == torch.float16
        else f"its weights or what it was given are not finite, in {str(dtype).removeprefix('torch.')}"
    )
    raise MIRError(f"layer {layer}: NaN or infinity in the hidden states of {modality} tokens; {way}")


class Modality(NamedTuple):
    """The tokens of one modality in one layer, as far as the distance needs them."""

    gaussian: Gaussian
    """Of the raw tokens, after the outlier rule."""
    tokens: int
    """Before the outlier rule."""
    outliers: int
    norm: float
    """Mean raw L2 norm, outliers included."""

    @classmethod
    def from_tokens(cls, tokens: Tensor, norms: Tensor, rule: str) -> "Modality":
        """From all tokens [n, d] and their norms [n], in their dtype."""
        mask = outlier_mask(norms)
        cleaned = without_outliers(tokens, mask, rule)
        return cls(Gaussian.from_tokens(cleaned), len(tokens), int(mask.sum()), float(norms.mean()))


def check_enough(layer: int, modality: str, tokens: int) -> None:
    """Raise MIRError where there are too few tokens for a covariance."""
    if tokens < 2:
        raise MIRError(
            f"layer {layer}: {tokens} {modality} token(s); "
            "a covariance takes at least 2, so measure more documents"
        )


def text_centric_terms(
    layer: int, vision: Modality, text: Modality, near: FrechetTerms | None = None
) -> tuple[FrechetTerms, FrechetTerms]:
    """Terms of one layer's distance, after division by the mean text norm (eq. 2), and before.

    Args:
        layer: number of the layer.
        vision: its vision tokens.
        text: its text tokens.
        near: terms before the division, as `frechet_terms` takes them.

    Raises:
        MIRError: text tokens whose norms are all zero, or terms that are not finite.
    """
    if text.norm == 0:
        raise MIRError(f"layer {layer}: every text token is zero, so there is no text norm")
    terms = frechet_terms(vision.gaussian, text.gaussian, near)
    scaled = terms.scaled(1 / text.norm)
    if not all(map(math.isfinite, (scaled.distance, scaled.error, scaled.product))):
        raise MIRError(
            f"layer {layer}: the distance is {scaled.distance}, its error {scaled.error}: hidden states "
            f"of mean norms {vision.norm:.3g} (vision) and {text.norm:.3g} (text) are too large or too "
            "small to compute with"
        )
    return scaled, terms


def layer_result(layer: int, vision: Modality, text: Modality) -> tuple[LayerResult, FrechetTerms]:
    """One layer's result, and the terms of its distance before the division by the text norm.

    Args:
        layer: number of the layer.
        vision: its vision tokens.
        text: its text tokens.

    Raises:
        MIRError: as `text_centric_terms`.
    """
    terms, raw = text_centric_terms(layer, vision, text)
    scale, (a, b) = 1 / text.norm, (vision.gaussian, text.gaussian)
    result = LayerResult(
        layer=layer,
        frechet=terms.distance,
        frechet_error=terms.error,
        frechet_published_fast=terms.mean + terms.traces - 2 * terms.product,
        mean_term=terms.mean,
        covariance_term=terms.covariance,
        text_scale=scale,
        vision_tokens=vision.tokens,
        text_tokens=text.tokens,
        vision_outliers=vision.outliers,
        text_outliers=text.outliers,
        vision_norm=vision.norm,
        text_norm=text.norm,
        dimensions=len(text.gaussian.mean),
        vision_rms_norm=rms_norm(a),
        text_rms_norm=rms_norm(b),
        vision_trace=a.trace() * scale**2,
        text_trace=b.trace() * scale**2,
        mean_product=float(a.mean @ b.mean) * scale**2,
        mean_cosine=cosine(a.mean, b.mean),
        vision_participation_ratio=participation_ratio(a),
        text_participation_ratio=participation_ratio(b),
    )
    return result, raw


class LeftOut(NamedTuple):
    """One layer's distances over all documents but those of one group."""

    frechet: float
    scale_free: float | None
    """None where all tokens of a modality are zero."""

    @classmethod
    def of(cls, layer: int, vision: Modality, text: Modality, near: FrechetTerms) -> "LeftOut":
        """From the tokens of these documents; arguments and errors as of `text_centric_terms`."""
        distance = text_centric_terms(layer, vision, text, near)[0].distance
        norms = (rms_norm(tokens.gaussian) / text.norm for tokens in (vision, text))
        return cls(distance, scale_free(distance, *norms))


class ComputedLayer(NamedTuple):
    """One decoder layer, with what only `MIRMeter` knows of it."""

    result: LayerResult
    left_out: tuple[LeftOut, ...] = ()
    """For each group of documents."""
    rows: tuple[Tensor, Tensor] | None = None
    """Raw rows [n, d] of some vision and some text tokens, where they were asked for."""


def result_of_layers(layers: Iterable[ComputedLayer], outliers: str) -> MIRResult:
    """The result of all layers together.

    Args:
        layers: in any order; that of number 0 is the decoder's input.
        outliers: the rule that was applied.

    Raises:
        MIRError: there is no decoder layer, or the sum of distances is zero to the precision of the
            arithmetic.
    """
    found = sorted(layers, key=lambda layer: layer.result.layer)
    ordered = [layer for layer in found if layer.result.layer > 0]
    results = tuple(layer.result for layer in ordered)
    if not results:
        raise MIRError("no decoder layer was measured: MIR takes layers from 1 on, 0 is their input")
    total = sum(layer.frechet for layer in results)
    if total <= 4 * sum(layer.frechet_error or 0 for layer in results):
        raise MIRError(
            f"the Fréchet distances of all layers sum to {total:.1e}, which is zero to rounding: "
            "vision and text tokens are the same, so MIR = log10(0) does not exist; "
            "check that the two sets of tokens are not one set passed twice"
        )
    groups = list(zip(*(layer.left_out for layer in ordered), strict=True))
    return MIRResult(
        layers=results,
        input_layer=next((layer.result for layer in found if layer.result.layer == 0), None),
        outliers=outliers,
        leave_one_group_out=tuple(tuple(of.frechet for of in group) for group in groups),
        scale_free_leave_one_group_out=tuple(tuple(of.scale_free for of in group) for group in groups),
    )


def modality_integration_rate(
    vision: Sequence[Tensor],
    text: Sequence[Tensor],
    *,
    outliers: str = "replace",
    dtype: torch.dtype | None = None,
) -> MIRResult:
    """Modality Integration Rate of pooled hidden states (paper section 3.1).

    Args:
        vision: one tensor [vision tokens, d] a decoder layer, of any floating dtype, on any device; or
            a numpy array.
        text: likewise [text tokens, d].
        outliers: `"replace"` puts the per-dimension median in the place of an outlier (the published
            code), `"drop"` removes it (the paper's text).
        dtype: of norms, covariances and root; float64 when None.

    Raises:
        MIRError: layers, dtypes or shapes that do not fit, NaN or infinity, fewer than 2 tokens of a
            modality, or a sum of distances that is zero to the precision of the arithmetic.

    >>> vision, text = torch.tensor([[3.0, 0.0], [5.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> result = modality_integration_rate([vision], [text])
    >>> round(result.layers[0].frechet, 12), round(result.mir, 6)
    (11.0, 1.041393)
    """
    check_outlier_rule(outliers)
    check_dtype(dtype)
    vision, text = as_rows(vision, "vision"), as_rows(text, "text")
    check_rows(vision, text)
    layers = []
    for number, rows in enumerate(zip(vision, text, strict=True), start=1):
        modalities = []
        for modality, tokens in zip(("vision", "text"), rows, strict=True):
            check_enough(number, modality, len(tokens))
            values = tokens.to(dtype or torch.float64)
            norms = token_norms({modality: {number: tokens}})[modality][0]
            modalities.append(Modality.from_tokens(values, norms.to(values.dtype), outliers))
        layers.append(ComputedLayer(layer_result(number, *modalities)[0]))
    return result_of_layers(layers, outliers)
