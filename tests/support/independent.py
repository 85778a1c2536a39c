"""MIR written down once more, from the paper's equations, to test the package against."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.spatial
import torch
from numpy.typing import ArrayLike


def frechet(vision: np.ndarray, text: np.ndarray) -> float:
    mean = vision.mean(0) - text.mean(0)
    a, b = np.cov(vision.T), np.cov(text.T)
    values, vectors = scipy.linalg.eigh(a)
    half = vectors * np.sqrt(values.clip(0)) @ vectors.T
    root = np.sqrt(scipy.linalg.eigvalsh(half @ b @ half).clip(0)).sum()
    return float(mean @ mean + np.trace(a) + np.trace(b) - 2 * root)


def without_outliers(rows: np.ndarray, rule: str = "replace") -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1)
    lower_median = np.sort(norms)[(len(norms) - 1) // 2]
    outlier = np.abs(norms - lower_median) > 3 * norms.std(ddof=1)
    if rule == "drop":
        return rows[~outlier]
    medians = np.sort(rows, axis=0)[(len(rows) - 1) // 2]
    return np.where(outlier[:, None], medians, rows)


def mir(vision: Sequence[ArrayLike], text: Sequence[ArrayLike]) -> float:
    """log10 of the sum over layers; each layer pooled over documents, [tokens, d]."""
    total = 0.0
    for layer_vision, layer_text in zip(vision, text, strict=True):
        v, t = (np.asarray(rows, dtype=np.float64) for rows in (layer_vision, layer_text))
        scale = 1 / np.linalg.norm(t, axis=1).mean()
        total += frechet(without_outliers(v * scale), without_outliers(t * scale))
    return float(np.log10(total))


def effective_rank(rows: np.ndarray) -> float:
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def participation_ratio(rows: np.ndarray) -> float:
    values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
    return float(values.sum() ** 2 / (values**2).sum())


def diagnostics(vision: ArrayLike, text: ArrayLike, rule: str = "replace") -> dict[str, float]:
    """Of one layer, by the names in the side file."""
    v, t = (np.asarray(rows, dtype=np.float64) for rows in (vision, text))
    norms = [np.linalg.norm(rows, axis=1).mean() for rows in (v, t)]
    clean_v, clean_t = without_outliers(v, rule), without_outliers(t, rule)
    a, b = clean_v.mean(0), clean_t.mean(0)
    traces = [np.trace(np.cov(rows.T)) for rows in (clean_v, clean_t)]
    return {
        "vision_rms_norm": np.sqrt(a @ a + traces[0]),
        "text_rms_norm": np.sqrt(b @ b + traces[1]),
        "vision_trace": traces[0] / norms[1] ** 2,
        "text_trace": traces[1] / norms[1] ** 2,
        "mean_product": a @ b / norms[1] ** 2,
        "norm_ratio": norms[0] / norms[1],
        "centroid_distance": np.linalg.norm(a - b) / norms[1],
        "mean_cosine": a @ b / np.sqrt(a @ a * (b @ b)),
        "vision_participation_ratio": participation_ratio(clean_v),
        "text_participation_ratio": participation_ratio(clean_t),
        "vision_tokens_per_dimension": v.shape[0] / v.shape[1],
        "text_tokens_per_dimension": t.shape[0] / t.shape[1],
    }


def scale_free(vision: ArrayLike, text: ArrayLike, rule: str = "replace") -> float:
    """Fréchet distance of tokens that were divided by the root mean square norm of their Gaussian."""
    scaled = []
    for tokens in (vision, text):
        rows = without_outliers(np.asarray(tokens, dtype=np.float64), rule)
        mean = rows.mean(0)
        scaled.append(rows / np.sqrt(mean @ mean + np.trace(np.cov(rows.T))))
    return frechet(*scaled)


def neighbour_overlap(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """By scikit-learn's neighbours, a document at a time."""
    from sklearn.neighbors import NearestNeighbors

    lists = []
    for rows in (a, b):
        search = NearestNeighbors(n_neighbors=k, metric="cosine").fit(rows)
        lists.append(search.kneighbors(return_distance=False))
    return float(np.mean([len(set(one) & set(other)) / k for one, other in zip(*lists, strict=True)]))


def token_cosines(vision: np.ndarray, text: np.ndarray) -> tuple[float, float]:
    cosines = 1 - scipy.spatial.distance.cdist(vision, text, "cosine")
    return float(np.mean(cosines)), float(np.mean([max(of_one) for of_one in cosines]))


def wasserstein2(a: np.ndarray, b: np.ndarray) -> float:
    """Squared, of numbers [r] and [s]: each repeated until both are as many, and sorted."""
    many = math.lcm(len(a), len(b))
    one, other = (np.sort(np.repeat(x, many // len(x))) for x in (a, b))
    return float(np.mean((one - other) ** 2))


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: np.ndarray) -> float:
    """Over directions [k, d], without regard to means."""
    return float(np.sqrt(np.mean([wasserstein2(a @ onto, b @ onto) for onto in directions])))


def cka(a: np.ndarray, b: np.ndarray) -> float:
    """Debiased linear CKA, HSIC as a mean over all quadruples of different pairs (n is small)."""

    def hsic(k: np.ndarray, m: np.ndarray) -> float:
        quadruples = itertools.permutations(range(len(k)), 4)
        terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in quadruples]
        return float(np.mean(terms))

    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def mmd2(a: np.ndarray, b: np.ndarray) -> float:
    both = np.concatenate([a, b])
    width = np.median(scipy.spatial.distance.pdist(both))

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(-scipy.spatial.distance.cdist(x, y, "sqeuclidean") / (2 * width**2))

    def off_diagonal_mean(x: np.ndarray) -> float:
        values = kernel(x, x)
        return values[~np.eye(len(x), dtype=bool)].mean()

    return float(off_diagonal_mean(a) + off_diagonal_mean(b) - 2 * kernel(a, b).mean())


def mir_of_model(model: torch.nn.Module, calls: Sequence[dict[str, torch.Tensor]]) -> float:
    """MIR from the very inputs that a model received, one document a call, by `output_hidden_states`."""
    vision, text = [], []
    for call in calls:
        inputs = {name: value for name, value in call.items() if name != "labels"}
        with torch.no_grad():
            states = model(**inputs, output_hidden_states=True).hidden_states[1:]
        is_image = call["input_ids"][0] == model.config.image_token_id
        after = torch.arange(len(is_image)) > is_image.nonzero().max()
        vision.append([layer[0][is_image].float() for layer in states])
        text.append([layer[0][after].float() for layer in states])
    return mir(pooled(vision), pooled(text))


def pooled(documents: Sequence[Sequence[torch.Tensor]]) -> list[np.ndarray]:
    """From [document][layer] to one array [tokens, d] a layer."""
    return [torch.cat(list(layer)).numpy() for layer in zip(*documents, strict=True)]
