"""Tables and plots of the study from its stored JSON: `python -m experiments.report`."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats

from experiments.arms import QUESTIONS, arms
from experiments.run import RUNS
from experiments.train import SFT_BUDGETS, Arm

STUDY = RUNS.parent
RESAMPLES = 2000
Record = dict[str, Any]
Predictor = Callable[[Record], float | None]


def layers(record: Record, term: str) -> np.ndarray:
    """A figure of every decoder layer [layers]."""
    return np.array([layer[term] for layer in record["mir"]["layers"]])


PREDICTORS: dict[str, Predictor] = {
    "MIR": lambda r: r["mir"]["mir"],
    "published fast": lambda r: r["mir"]["mir_published_fast"],
    "training loss": lambda r: r["training_loss"],
    "caption loss": lambda r: r["mir"]["caption_loss"],
}
"""What is held against accuracy after SFT, in all of which lower should be better."""

PARTS: dict[str, Predictor] = {
    "MIR": PREDICTORS["MIR"],
    "without the layer after the final norm": lambda r: math.log10(layers(r, "frechet")[:-1].sum()),
    "mean terms": lambda r: math.log10(layers(r, "mean_term").sum()),
    "covariance terms": lambda r: math.log10(layers(r, "covariance_term").sum()),
    "no normalisation": lambda r: math.log10(
        (layers(r, "frechet") / layers(r, "text_scale") ** 2).sum()
    ),
    "ratio of norms": lambda r: float(
        abs(np.log(layers(r, "vision_norm") / layers(r, "text_norm"))).sum()
    ),
    **{
        f"layer {number + 1}": (lambda r, number=number: math.log10(layers(r, "frechet")[number]))
        for number in range(4)
    },
}
"""Parts and variants of MIR, for (k)."""


def read(folder: Path) -> dict[str, Record]:
    """Stored records by the arm's name."""
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}


def accuracy(record: Record, budget: int = SFT_BUDGETS[-1]) -> float:
    """Of all questions, after SFT on a number of them."""
    return float(record["accuracy"][str(budget)]["all"])


def spearman(x: Sequence[float], y: Sequence[float], given: Sequence[float] | None = None) -> float:
    """Rank correlation; partial, on the ranks, where something is given."""
    r = scipy.stats.spearmanr(x, y).statistic
    if given is None:
        return float(r)
    a, b = (scipy.stats.spearmanr(values, given).statistic for values in (x, y))
    return float((r - a * b) / math.sqrt(max((1 - a**2) * (1 - b**2), 1e-12)))


def interval(statistic: Callable[..., float], *columns: Sequence[float]) -> tuple[float, float]:
    """95% percentile bootstrap over arms."""
    data, random = np.array(columns), np.random.default_rng(0)
    drawn = []
    while len(drawn) < RESAMPLES:
        sample = data[:, random.integers(data.shape[1], size=data.shape[1])]
        if all(len(set(row)) > 2 for row in sample):
            drawn.append(statistic(*sample))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def correlation(
    records: Iterable[Record], predictor: Predictor, budget: int, given: Predictor | None = None
) -> str:
    """Spearman's coefficient with accuracy, and its interval."""
    rows = [(predictor(r), accuracy(r, budget), given(r) if given else 0.0) for r in records]
    known = [row for row in rows if None not in row]
    x, y, z = (list(column) for column in zip(*known, strict=True))
    columns = (x, y, z) if given else (x, y)
    low, high = interval(spearman, *columns)
    return f"{spearman(*columns):+.2f} [{low:+.2f}, {high:+.2f}]"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table in Markdown."""
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return ["", *(f"| {' | '.join(map(str, row))} |" for row in [head, aligned, *rows]), ""]


def _mean(values: Iterable[float | None], digits: int = 3) -> str:
    """Mean over seeds, and their standard deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    spread = f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else ""
    return f"{np.mean(known):.{digits}f}{spread}"


def _setting(arm: Arm) -> str:
    """An arm's name without its seed."""
    return arm.name.rpartition("-seed")[0]


def settings_table(records: dict[str, Record], letter: str) -> list[str]:
    """MIR, its baselines and accuracies of a question's settings, over seeds."""
    groups: dict[str, list[Record]] = {}
    for arm in QUESTIONS[letter][1]:
        if arm.name in records:
            groups.setdefault(_setting(arm), []).append(records[arm.name])
    budgets = ("0", *map(str, SFT_BUDGETS))
    rows = [
        [
            name,
            *(_mean(predictor(r) for r in group) for predictor in PREDICTORS.values()),
            *(_mean(r["accuracy"][budget]["all"] for r in group) for budget in budgets),
        ]
        for name, group in groups.items()
    ]
    return table(["arm", *PREDICTORS, *(f"accuracy after SFT on {budget}" for budget in budgets)], rows)


def correlations(records: dict[str, Record]) -> list[str]:
    """Spearman with accuracy after SFT: within questions, pooled, and given the caption loss."""
    loss = PREDICTORS["caption loss"]
    rows = []
    for budget in SFT_BUDGETS:
        for letters in (*QUESTIONS, "".join(QUESTIONS)):
            chosen = [records[arm.name] for arm in arms(letters) if arm.name in records]
            if len(chosen) < 6:
                continue
            label = f"({letters})" if len(letters) == 1 else "all"
            found = [correlation(chosen, predictor, budget) for predictor in PREDICTORS.values()]
            given = [
                correlation(chosen, PREDICTORS[name], budget, loss) for name in ("MIR", "published fast")
            ]
            rows.append([label, budget, len(chosen), *found, *given])
    head = [
        "question",
        "SFT on",
        "arms",
        *PREDICTORS,
        "MIR given caption loss",
        "published fast given it",
    ]
    return table(head, rows)


def parts(records: dict[str, Record]) -> list[str]:
    """Spearman of MIR's parts with accuracy after SFT, for (a) and over all arms."""
    sets = {
        letters: [records[a.name] for a in arms(letters) if a.name in records]
        for letters in ("a", "".join(QUESTIONS))
    }
    budget = SFT_BUDGETS[-1]
    rows = [
        [name, *(correlation(chosen, part, budget) for chosen in sets.values())]
        for name, part in PARTS.items()
    ]
    return table(["part", "(a)", "all arms"], rows)


def curves(records: dict[str, Record]) -> list[str]:
    """MIR along the pre-trainings of (a)."""
    groups: dict[int, list[list[dict[str, Any]]]] = {}
    for arm in QUESTIONS["a"][1]:
        if arm.name in records and (curve := records[arm.name]["curve"]):
            end = {"pairs": arm.pairs, **records[arm.name]["mir"]}
            groups.setdefault(arm.pairs, []).append([*curve, end])
    rows = []
    for pairs, several in groups.items():
        for points in zip(*several, strict=True):
            keys = ("mir", "mir_published_fast", "caption_loss")
            rows.append([pairs, points[0]["pairs"], *(_mean(p[key] for p in points) for key in keys)])
    return table(["pairs of the pre-training", "seen", "MIR", "published fast", "caption loss"], rows)


def disagreements(records: dict[str, Record]) -> list[str]:
    """Pairs of arms that exact MIR and the published default mode order differently, by question."""
    rows = []
    for letters in (*QUESTIONS, "".join(QUESTIONS)):
        chosen = [records[arm.name] for arm in arms(letters) if arm.name in records]
        differ, exact_right, pairs = 0, 0, 0
        for row, one in enumerate(chosen):
            for other in chosen[:row]:
                exact, fast = (
                    PREDICTORS[name](one) - PREDICTORS[name](other) for name in ("MIR", "published fast")
                )
                better = accuracy(one) - accuracy(other)
                pairs += 1
                if exact * fast < 0 and better != 0:
                    differ += 1
                    exact_right += exact * better < 0
        if pairs:
            label = f"({letters})" if len(letters) == 1 else "all"
            right = f"{exact_right / differ:.2f}" if differ else ""
            rows.append([label, pairs, f"{differ / pairs:.2f}", right])
    head = [
        "question",
        "pairs of arms",
        "share ordered differently",
        "of these, exact MIR with accuracy",
    ]
    return table(head, rows)


def evaluation_inputs(inputs: dict[str, Record], records: dict[str, Record]) -> list[str]:
    """MIR of (a)'s models on each set of inputs, against how far the models themselves lie apart."""
    names = [arm.name for arm in QUESTIONS["a"][1] if arm.name in inputs and arm.name in records]
    if not names:
        return []
    kinds = list(inputs[names[0]]["sets"])
    values = np.array([[inputs[name]["sets"][kind]["mir"] for kind in kinds] for name in names])
    right = [accuracy(records[name]) for name in names]
    rows = []
    for column, kind in enumerate(kinds):
        shift = values[:, column] - values[:, 0]
        low, high = interval(spearman, values[:, column].tolist(), right)
        rows.append(
            [
                kind,
                f"{values[:, column].mean():.3f}",
                f"{values[:, column].std(ddof=1):.3f}",
                f"{shift.mean():+.3f} ± {shift.std(ddof=1):.3f}",
                f"{spearman(values[:, column], values[:, 0]):+.2f}",
                f"{spearman(values[:, column], right):+.2f} [{low:+.2f}, {high:+.2f}]",
            ]
        )
    head = [
        "inputs",
        "MIR",
        "spread over models",
        "less that on own captions",
        "order of models as on own captions",
        "Spearman with accuracy",
    ]
    lines = table(head, rows)
    within = values.std(axis=1, ddof=1).mean()
    lines += [
        f"Mean spread of one model over the sets: {within:.3f}; of the models on one set: {values.std(axis=0, ddof=1).mean():.3f}."
    ]
    sizes = list(inputs[names[0]]["samples"])
    samples = np.array([[inputs[name]["samples"][size]["mir"] for size in sizes] for name in names])
    rows = []
    for column, size in enumerate(sizes):
        shift = samples[:, column] - samples[:, -1]
        rows.append(
            [
                size,
                f"{samples[:, column].mean():.3f}",
                f"{shift.mean():+.3f} ± {shift.std(ddof=1):.3f}",
                f"{spearman(samples[:, column], samples[:, -1]):+.2f}",
            ]
        )
    return lines + table(["documents", "MIR", "less that of 500", "order of models as with 500"], rows)


def tables(records: dict[str, Record], inputs: dict[str, Record]) -> str:
    """All tables, as Markdown."""
    lines = [
        "# Tables of the study",
        "",
        "Made from the JSON beside it by `python -m experiments.report`. Means over seeds with their standard",
        "deviation; Spearman's coefficients with 95% bootstrap intervals over arms. MIR, the losses and the",
        "default mode of the published script are of the pre-trained model, before SFT; lower should be better,",
        "so a coefficient of -1 would be perfect.",
    ]
    for letter, (title, _) in QUESTIONS.items():
        lines += ["", f"## ({letter}) {title}", *settings_table(records, letter)]
    lines += ["## Correlation with accuracy after SFT", *correlations(records)]
    lines += ["## (g) Convergence", *curves(records)]
    lines += ["## (i) Evaluation inputs", *evaluation_inputs(inputs, records)]
    lines += ["## (j) Exact against published fast", *disagreements(records)]
    lines += ["## (k) Parts of MIR", *parts(records)]
    return "\n".join(lines).rstrip() + "\n"
