"""Rank correlations over models, with bootstrap intervals."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

BOOTSTRAP, SEED, ENOUGH = 999, 0, 10
"""Resamples of models behind an interval of a correlation, their seed, and the fewest models for one."""

FEW = f"; no interval of fewer than {ENOUGH} models"
"""What is said where there is no interval."""

Values = npt.NDArray[Any]


def correlation(
    rows: Iterable[dict[str, Any]], benchmark: str, indicator: str = "mir"
) -> dict[str, Any]:
    """Rank correlations of MIR and a benchmark over models, with 95% intervals.

    Args:
        rows: of one group; those without the score or the indicator are left out. A model counts once:
            by its newest run of each set of arguments that has a score of its own, else by its newest.
        benchmark: its name.
        indicator: that is laid beside it, as `mir`.

    Returns:
        `n`, and for `spearman` and `kendall` (tau-b) `value` and `interval`: percentiles of 999
        resamples of the models; `words` says it all. `interval` is None with fewer than 10 models,
        `value` with fewer than 3 or where all values are equal.
    """
    pairs = [
        (row[indicator], row["benchmarks"][benchmark])
        for row in _once(
            (row for row in rows if benchmark in row["benchmarks"] and row[indicator] is not None),
            benchmark,
        )
    ]
    n = len(pairs)
    mir, score = np.array(pairs).reshape(-1, 2).T
    known = n >= 3 and np.ptp(mir) > 0 and np.ptp(score) > 0
    found: dict[str, Any] = {"n": n}
    found["spearman"] = {"value": float(stats.spearmanr(mir, score).statistic) if known else None}
    found["kendall"] = {"value": float(stats.kendalltau(mir, score).statistic) if known else None}
    draws = np.random.default_rng(SEED).integers(max(n, 1), size=(BOOTSTRAP, n))
    for name, way in (("spearman", _spearman), ("kendall", _kendall)):
        found[name]["interval"] = None
        if known and n >= ENOUGH:
            values = way(mir, score, draws)
            found[name]["interval"] = np.nanquantile(values, (0.025, 0.975)).tolist()
    return found | {"words": _in_words(found)}


def _once(rows: Iterable[dict[str, Any]], benchmark: str) -> list[dict[str, Any]]:
    """Rows with a score, without those that have that of another row or a newer run."""
    own: dict[tuple[str, str, str], dict[str, Any]] = {}
    others: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: str(row["date"])):
        if benchmark in row["other_arguments"]:
            others[row["model"]] = row
        else:
            own[row["model"], row["adapter"], row["arguments"]] = row
    for model, _, _ in own:
        others.pop(model, None)
    return [*own.values(), *others.values()]


def _spearman(x: Values, y: Values, draws: Values) -> Values:
    """Of each resample [draws, n] of pairs; nan where all values of one are equal."""
    ranks = [stats.rankdata(values[draws], axis=1) for values in (x, y)]
    one, other = (values - values.mean(axis=1, keepdims=True) for values in ranks)
    with np.errstate(invalid="ignore"):
        return (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))  # type: ignore[no-any-return]


def _kendall(x: Values, y: Values, draws: Values) -> Values:
    """Likewise tau-b, from how often each pair is in a resample: scipy's, one by one, takes seconds."""
    counts = np.stack([np.bincount(draw, minlength=len(x)) for draw in draws]).astype(np.float32)
    one, other = (np.sign(values[:, None] - values).astype(np.float32) for values in (x, y))
    of_pairs = [((counts @ signs) * counts).sum(1) for signs in (one * other, abs(one), abs(other))]
    with np.errstate(invalid="ignore"):
        return of_pairs[0] / np.sqrt(of_pairs[1] * of_pairs[2])  # type: ignore[no-any-return]


def _in_words(found: dict[str, Any]) -> str:
    """Both coefficients with intervals and n."""
    n, parts = found["n"], []
    if found["spearman"]["value"] is None:
        return f"n = {n}; no correlation of fewer than 3 models or of equal values"
    for name, sign in (("spearman", "Spearman ρ"), ("kendall", "Kendall τ")):
        value, interval = found[name]["value"], found[name]["interval"]
        part = f"{sign} {value:+.2f}"
        if interval is not None:
            part += f" (95% {interval[0]:+.2f} to {interval[1]:+.2f})"
        parts.append(part)
    return f"{', '.join(parts)}, n = {n}{'' if n >= ENOUGH else FEW}"
