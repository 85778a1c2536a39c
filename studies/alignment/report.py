"""Tables and plots of the study from its stored JSON: `python -m studies.alignment.report`."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from studies.alignment.arms import QUESTIONS, SEEDS, arms
from studies.alignment.inputs import INPUTS
from studies.alignment.run import RUNS
from studies.alignment.train import SFT_BUDGETS, Arm

STUDY = RUNS.parent
RESAMPLES = 2000
BUDGET = SFT_BUDGETS[-1]
ALL = "".join(QUESTIONS)
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
BOTH = ("MIR", "published fast")

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
    return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("[!.]*.json"))}


def accuracy(record: Record, budget: int = BUDGET) -> float:
    """Of all questions, after SFT on a number of them."""
    return float(record["accuracy"][str(budget)]["all"])


def spearman(x: Sequence[float], y: Sequence[float], given: Sequence[float] | None = None) -> float:
    """Rank correlation; partial, on the ranks, where something is given."""
    r = scipy.stats.spearmanr(x, y).statistic
    if given is None:
        return float(r)
    a, b = (scipy.stats.spearmanr(values, given).statistic for values in (x, y))
    return float((r - a * b) / math.sqrt(max((1 - a**2) * (1 - b**2), 1e-12)))


def interval(settings: Sequence[str], *columns: Sequence[float]) -> tuple[float, float]:
    """95% percentile bootstrap of `spearman` over settings, each with the arms of all its seeds."""
    data, names = np.array(columns), np.array(settings)
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(settings)]
    random, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = random.integers(len(groups), size=len(groups))
        sample = data[:, np.concatenate([groups[number] for number in chosen])]
        if all(len(set(row)) > 2 for row in sample):
            drawn.append(spearman(*sample))
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def setting(record: Record) -> str:
    """What the seeds of an arm share."""
    return Arm(**record["arm"]).name.rpartition("-seed")[0]


def correlation(
    records: Iterable[Record], predictor: Predictor, budget: int, given: Predictor | None = None
) -> str:
    """Spearman's coefficient with accuracy, and its interval, of the arms that the predictor knows."""
    known = [r for r in records if predictor(r) is not None]
    columns = [
        [each(r) for r in known] for each in (predictor, lambda r: accuracy(r, budget), given) if each
    ]
    low, high = interval([setting(r) for r in known], *columns)  # type: ignore[arg-type]
    return f"{spearman(*columns):+.2f} [{low:+.2f}, {high:+.2f}]"  # type: ignore[arg-type]


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


def _of(records: dict[str, Record], letters: str) -> list[Record]:
    """Records of the arms of some questions, each once."""
    return [records[arm.name] for arm in arms(letters) if arm.name in records]


def _sets(records: dict[str, Record]) -> dict[str, list[Record]]:
    """Records of each question, of all, and of all but the untrained connectors."""
    sets = {f"({letter})": _of(records, letter) for letter in QUESTIONS}
    every = _of(records, ALL)
    return {**sets, "all": every, "all but the untrained": [r for r in every if r["arm"]["pairs"]]}


def settings_table(records: dict[str, Record], letter: str) -> list[str]:
    """MIR, its baselines and accuracies of a question's settings, over seeds."""
    groups: dict[str, list[Record]] = {}
    for arm in QUESTIONS[letter][1]:
        if arm.name in records:
            groups.setdefault(setting(records[arm.name]), []).append(records[arm.name])
    budgets = ("0", *map(str, SFT_BUDGETS))
    rows = [
        [
            name,
            *(_mean(predictor(r) for r in group) for predictor in PREDICTORS.values()),
            *(_mean(r["accuracy"][budget]["all"] for r in group) for budget in budgets),
        ]
        for name, group in groups.items()
    ]
    return table(["arm", *PREDICTORS, *(f"accuracy, SFT on {budget}" for budget in budgets)], rows)


def correlations(records: dict[str, Record]) -> list[str]:
    """Spearman with accuracy after SFT: within questions, pooled, and given the caption loss."""
    loss = PREDICTORS["caption loss"]
    rows = []
    for budget in SFT_BUDGETS:
        for name, chosen in _sets(records).items():
            found = [correlation(chosen, predictor, budget) for predictor in PREDICTORS.values()]
            given = [correlation(chosen, PREDICTORS[each], budget, loss) for each in BOTH]
            rows.append([name, budget, len(chosen), *found, *given])
    head = ["question", "SFT on", "arms", *PREDICTORS, *(f"{name} given caption loss" for name in BOTH)]
    return table(head, rows)


def curves(records: dict[str, Record]) -> list[str]:
    """MIR along the pre-trainings of (a)."""
    groups: dict[int, list[list[dict[str, Any]]]] = {}
    for record in _of(records, "a"):
        if record["curve"]:
            pairs = record["arm"]["pairs"]
            groups.setdefault(pairs, []).append([*record["curve"], {"pairs": pairs, **record["mir"]}])
    keys = ("mir", "mir_published_fast", "caption_loss")
    rows = [
        [pairs, points[0]["pairs"], *(_mean(point[key] for point in points) for key in keys)]
        for pairs, several in groups.items()
        for points in zip(*several, strict=True)
    ]
    return table(["pairs of the pre-training", "seen", "MIR", "published fast", "caption loss"], rows)


def evaluation_inputs(inputs: dict[str, Record], records: dict[str, Record]) -> list[str]:
    """MIR of (a)'s models on each set of inputs, against how far the models themselves lie apart."""
    kinds = list(next(iter(inputs.values()))["sets"])
    values = np.array([[one["sets"][kind]["mir"] for kind in kinds] for one in inputs.values()])
    right = [accuracy(records[name]) for name in inputs]
    settings = [setting(records[name]) for name in inputs]
    rows = []
    for column, kind in enumerate(kinds):
        mir, shift = values[:, column], values[:, column] - values[:, 0]
        low, high = interval(settings, mir, right)
        rows.append(
            [
                kind,
                f"{mir.mean():.3f}",
                f"{mir.std(ddof=1):.3f}",
                f"{shift.mean():+.3f} ± {shift.std(ddof=1):.3f}",
                f"{spearman(mir, values[:, 0]):+.2f}",
                f"{spearman(mir, right):+.2f} [{low:+.2f}, {high:+.2f}]",
            ]
        )
    head = [
        "inputs",
        "MIR",
        "spread over models",
        "minus MIR on own captions",
        "order of models as on own captions",
        "Spearman with accuracy",
    ]
    inside, between = values.std(axis=1, ddof=1).mean(), values[:, 0].std(ddof=1)
    told = (
        f"Spread of one model over the sets: {inside:.3f}; of the models on own captions: {between:.3f}."
    )
    return [*table(head, rows), told]


def sample_sizes(inputs: dict[str, Record]) -> list[str]:
    """MIR of (a)'s models on the first of 500 documents."""
    sizes = list(next(iter(inputs.values()))["samples"])
    values = np.array([[one["samples"][size]["mir"] for size in sizes] for one in inputs.values()])
    rows = []
    for column, size in enumerate(sizes):
        mir, shift = values[:, column], values[:, column] - values[:, -1]
        bias = f"{shift.mean():+.3f} ± {shift.std(ddof=1):.3f}"
        rows.append([size, f"{mir.mean():.3f}", bias, f"{spearman(mir, values[:, -1]):+.2f}"])
    return table(["documents", "MIR", "minus MIR with 500", "order of models as with 500"], rows)


def disagreements(records: dict[str, Record]) -> list[str]:
    """Pairs of arms, of unequal accuracy, that MIR and the published default mode order differently."""
    rows = []
    for label, chosen in _sets(records).items():
        columns = [[PREDICTORS[name](r) for r in chosen] for name in BOTH] + [
            [accuracy(r) for r in chosen]
        ]
        upper = np.triu_indices(len(chosen), 1)
        exact, fast, better = (np.sign(np.subtract.outer(c, c))[upper] for c in columns)
        known = better != 0
        differ = exact * fast < 0
        right = f"{(exact * better < 0)[differ & known].mean():.2f}" if (differ & known).any() else ""
        rows.append([label, known.sum(), f"{differ[known].mean():.2f}", right])
    head = ["question", "pairs of arms", "ordered differently", "of these, exact MIR is with accuracy"]
    return table(head, rows)


def parts(records: dict[str, Record]) -> list[str]:
    """Spearman of MIR's parts with accuracy after SFT, and with MIR over all arms."""
    sets = {name: _sets(records)[name] for name in ("(a)", "all", "all but the untrained")}
    rows = []
    for name, part in PARTS.items():
        found = [correlation(chosen, part, BUDGET) for chosen in sets.values()]
        values = [[each(record) for record in sets["all"]] for each in (part, PARTS["MIR"])]
        rows.append([name, *found, f"{spearman(*values):+.2f}"])
    return table(["part", *sets, "with MIR, all"], rows)


def tables(records: dict[str, Record], inputs: dict[str, Record]) -> str:
    """All tables, as Markdown."""
    lines = [
        "# Tables of the study",
        "",
        "Made from the JSON beside it by `python -m studies.alignment.report`: means over seeds with",
        "their standard deviation; Spearman's coefficients with 95% bootstrap intervals over settings,",
        "each with the arms of all its seeds. MIR, the published script's default mode and the losses",
        "are of the pre-trained model, before SFT; lower should be better, so that -1 would be a",
        "perfect coefficient. The training loss is of each arm's own captions, and untrained connectors",
        "have none; the caption loss is of full captions of held-out images.",
    ]
    for letter, (title, _) in QUESTIONS.items():
        lines += ["", f"## ({letter}) {title}", *settings_table(records, letter)]
    lines += ["## Correlation with accuracy after SFT", *correlations(records)]
    lines += ["## (g) Convergence", *curves(records)]
    lines += ["## (i) Evaluation inputs", *evaluation_inputs(inputs, records), *sample_sizes(inputs)]
    lines += ["## (j) Exact against published fast", *disagreements(records)]
    lines += ["## (k) Parts of MIR", *parts(records)]
    return "\n".join(lines).rstrip() + "\n"


def plot_scatter(records: dict[str, Record]) -> Any:
    """Accuracy after SFT over MIR, the published default mode and caption loss, by question."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.8), sharey=True, layout="constrained")
    for axis, name in zip(axes, (*BOTH, "caption loss"), strict=True):
        for letter, (title, _) in QUESTIONS.items():
            chosen = _of(records, letter)
            x = [PREDICTORS[name](record) for record in chosen]
            axis.scatter(x, [accuracy(r) for r in chosen], s=18, alpha=0.7, label=f"({letter}) {title}")
        axis.set_xlabel(f"{name} of the pre-trained model")
    axes[0].set_ylabel(f"accuracy after SFT on {BUDGET}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def plot_scale(records: dict[str, Record]) -> Any:
    """MIR, the published default mode and accuracy over the pairs of (a), a line a seed."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
    kinds = {name: PREDICTORS[name] for name in BOTH} | {f"accuracy after SFT on {BUDGET}": accuracy}
    for axis, (name, value) in zip(axes, kinds.items(), strict=True):
        for seed in SEEDS:
            chosen = [r for r in _of(records, "a") if r["arm"]["seed"] == seed]
            # The untrained connector stands where a logarithmic axis has room for it.
            x = [max(record["arm"]["pairs"], 500) for record in chosen]
            axis.plot(x, [value(record) for record in chosen], "o-", label=f"seed {seed}")
        axis.set(xscale="log", xlabel="pairs of pre-training (500: none)", ylabel=name)
    axes[0].legend()
    return figure


def plot_layers(records: dict[str, Record]) -> Any:
    """Distance and ratio of norms of every layer over the pairs of (a), means over seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for pairs in dict.fromkeys(arm.pairs for arm in QUESTIONS["a"][1]):
        chosen = [r for r in _of(records, "a") if r["arm"]["pairs"] == pairs]
        distance = np.mean([layers(r, "frechet") for r in chosen], axis=0)
        norms = np.mean([layers(r, "vision_norm") / layers(r, "text_norm") for r in chosen], axis=0)
        numbers = range(1, len(distance) + 1)
        axes[0].plot(numbers, distance, "o-", label=f"{pairs} pairs")
        axes[1].plot(numbers, norms, "o-")
    axes[0].set(xlabel="decoder layer", ylabel="Fréchet distance", xticks=numbers)
    axes[1].set(xlabel="decoder layer", ylabel="vision norm / text norm", xticks=numbers)
    axes[0].legend(fontsize=8)
    return figure


PLOTS = {"scatter": plot_scatter, "scale": plot_scale, "layers": plot_layers}


def main() -> None:
    """Write tables and plots."""
    records, inputs = read(RUNS), read(INPUTS)
    for module, stored, wanted in (("run", records, ALL), ("inputs", inputs, "a")):
        if missing := [arm.name for arm in arms(wanted) if arm.name not in stored]:
            raise SystemExit(
                f"{len(missing)} arms are not stored, {missing[0]} first: "
                f"run `python -m studies.alignment.{module}`"
            )
    (STUDY / "tables.md").write_text(tables(records, inputs), "utf-8")
    for name, plot in PLOTS.items():
        plot(records).savefig(STUDY / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
