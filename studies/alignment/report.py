"""Tables and plots of the study from its stored JSON: `python -m studies.alignment.report`."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from studies.alignment.arms import QUESTIONS, arms
from studies.alignment.inputs import INPUTS
from studies.alignment.run import RUNS
from studies.alignment.train import SFT_BUDGETS, Arm

STUDY = RUNS.parent
RESAMPLES = 2000
BUDGET = SFT_BUDGETS[-1]
LEVEL = 4000
"""Pairs from which on MIR no longer rises in (a)."""
ALL = "".join(QUESTIONS)
Record = dict[str, Any]
Predictor = Callable[[Record], float | None]


def layers(record: Record, term: str) -> np.ndarray:
    """A figure of every decoder layer [layers]."""
    return np.array([layer[term] for layer in record["mir"]["layers"]])


def norm_ratios(record: Record) -> np.ndarray:
    """Mean vision norm over mean text norm of every decoder layer [layers]."""
    return layers(record, "vision_norm") / layers(record, "text_norm")


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
    "ratio of norms": lambda r: float(abs(np.log(norm_ratios(r))).sum()),
    "norms taken out": lambda r: math.log10(
        ((layers(r, "frechet") - (norm_ratios(r) - 1) ** 2) / norm_ratios(r)).sum()
    ),
    **{
        f"layer {number + 1}": (lambda r, number=number: math.log10(layers(r, "frechet")[number]))
        for number in range(4)
    },
}
"""Parts and variants of MIR, for (k). Norms are means; root mean squares, not stored, would be exact."""


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


def bootstrap(
    settings: Sequence[str], statistic: Callable[..., float], *columns: Sequence[float]
) -> tuple[float, float]:
    """95% percentile bootstrap over settings, each with all its seeds; NaN does not count."""
    data, names = np.array(columns), np.array(settings)
    groups = [np.flatnonzero(names == name) for name in dict.fromkeys(settings)]
    random, drawn = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        chosen = random.integers(len(groups), size=len(groups))
        drawn.append(statistic(*data[:, np.concatenate([groups[number] for number in chosen])]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def interval(settings: Sequence[str], *columns: Sequence[float]) -> tuple[float, float]:
    """`bootstrap` of `spearman`, over the resamples with more than two values in each column."""

    def of_sample(*sample: Sequence[float]) -> float:
        return spearman(*sample) if all(len(set(row)) > 2 for row in sample) else math.nan

    return bootstrap(settings, of_sample, *columns)


def permutation_p(settings: Sequence[str], x: Sequence[float], y: Sequence[float]) -> float:
    """Exact two-sided p of `spearman`: x of whole settings changes places, in every order there is."""
    names = np.array(settings)
    groups = np.array([np.flatnonzero(names == name) for name in dict.fromkeys(settings)])
    ranks = [scipy.stats.rankdata(values)[groups] for values in (x, y)]
    centred = ranks[0] - ranks[0].mean()

    def size(order: np.ndarray) -> float:
        return abs(float((centred[order.astype(int)] * ranks[1]).sum()))

    found = scipy.stats.permutation_test(
        (np.arange(len(groups)),),
        size,
        permutation_type="pairings",
        n_resamples=math.factorial(len(groups)),
        alternative="greater",
        vectorized=False,
    )
    return float(found.pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """The p values of a family after Holm's correction, in their order."""
    order = np.argsort(values)
    stepped = np.array(values)[order] * np.arange(len(values), 0, -1)
    corrected = np.empty(len(values))
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return corrected.tolist()


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
    sets[f"(a) from {LEVEL} pairs on"] = [r for r in sets["(a)"] if r["arm"]["pairs"] >= LEVEL]
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


def significance(records: dict[str, Record]) -> list[str]:
    """Exact permutation tests of MIR's coefficient in each question, corrected over all questions."""
    rows: list[list[object]] = []
    for budget in SFT_BUDGETS:
        found, values = [], []
        for letter in QUESTIONS:
            chosen = _of(records, letter)
            settings = [setting(r) for r in chosen]
            columns = [PREDICTORS["MIR"](r) for r in chosen], [accuracy(r, budget) for r in chosen]
            orders = math.factorial(len(set(settings)))
            found.append([f"({letter})", budget, orders, f"{spearman(*columns):+.2f}"])
            values.append(permutation_p(settings, *columns))
        corrected = holm(values)
        rows += [
            [*row, f"{p:.3f}", f"{after:.2f}"]
            for row, p, after in zip(found, values, corrected, strict=True)
        ]
    return table(["question", "SFT on", "orders", "MIR", "exact p", f"Holm over {len(QUESTIONS)}"], rows)


def moca_by_seed(records: dict[str, Record]) -> list[str]:
    """What MoCa changes in the arm of the same pairs and seed, with a 95% interval of Student's t."""
    figures: dict[str, Predictor] = {
        **{name: PREDICTORS[name] for name in (*BOTH, "caption loss")},
        **{
            f"accuracy, SFT on {budget}": lambda r, budget=budget: accuracy(r, budget)
            for budget in SFT_BUDGETS
        },
    }
    pairs = [
        (records[replace(arm, moca=False).name], records[arm.name])
        for arm in QUESTIONS["f"][1]
        if arm.moca and arm.name in records
    ]
    rows = []
    for name, figure in figures.items():
        change = np.array([figure(after) - figure(before) for before, after in pairs])
        low, high = scipy.stats.ttest_1samp(change, 0).confidence_interval()
        less = f"{(change < 0).sum()} of {len(change)}"
        rows.append([name, f"{change.mean():+.3f} [{low:+.3f}, {high:+.3f}]", less])
    return table(["figure", "with MoCa minus without", "lower with MoCa"], rows)


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
    return [*table(head, rows), *spreads(inputs, records)]


def spreads(inputs: dict[str, Record], records: dict[str, Record]) -> list[str]:
    """How far MIR moves over inputs, and how far from model to model, of (a)'s models from a size on."""
    values = np.array([[kind["mir"] for kind in one["sets"].values()] for one in inputs.values()])
    pairs = np.array([records[name]["arm"]["pairs"] for name in inputs])
    rows = []
    for least in np.unique(pairs)[:-1]:
        chosen = pairs >= least
        means = [values[pairs == size, 0].mean() for size in np.unique(pairs[chosen])]
        spread = (
            values[chosen].std(axis=1, ddof=1).mean(),
            values[chosen, 0].std(ddof=1),
            np.std(means, ddof=1),
        )
        rows.append([least, *(f"{value:.3f}" for value in spread)])
    head = ["models from these pairs on", "one model over the sets", "models, own captions"]
    return table([*head, "means of settings, own captions"], rows)


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


def agreement(right: Sequence[float], *indicators: Sequence[float]) -> list[np.ndarray]:
    """Of each indicator, whether it orders pairs of arms of unequal accuracy as claimed [pairs]."""
    upper = np.triu_indices(len(right), 1)
    better, *lower = (
        np.sign(np.subtract.outer(c, c))[upper] for c in map(np.asarray, (right, *indicators))
    )
    return [(order * better < 0)[better != 0] for order in lower]


def exact_is_right(right: Sequence[float], exact: Sequence[float], fast: Sequence[float]) -> float:
    """Of the pairs that the two order differently, the share in which exact MIR is with accuracy."""
    first, second = agreement(right, exact, fast)
    differ = first != second
    return float(first[differ].mean()) if differ.any() else math.nan


def disagreements(records: dict[str, Record]) -> list[str]:
    """Pairs of arms, of unequal accuracy, that are ordered as claimed, and where MIR and fast differ."""
    names = (*BOTH, "caption loss")
    rows = []
    for label, chosen in _sets(records).items():
        right = [accuracy(r) for r in chosen]
        values = [[PREDICTORS[name](r) for r in chosen] for name in names]
        agree = agreement(right, *values)
        share = exact_is_right(right, *values[:2])
        told = "" if math.isnan(share) else f"{share:.2f}"
        if not label.startswith("("):
            low, high = bootstrap([setting(r) for r in chosen], exact_is_right, right, *values[:2])
            told += f" [{low:.2f}, {high:.2f}]"
        shares = [f"{each.mean():.2f}" for each in agree]
        rows.append([label, len(agree[0]), *shares, f"{(agree[0] != agree[1]).mean():.2f}", told])
    head = ["question", "pairs of arms", *(f"{name} is with accuracy" for name in names)]
    return table([*head, "exact and fast differ", "of these, exact MIR is with accuracy"], rows)


def parts(records: dict[str, Record]) -> list[str]:
    """Spearman of MIR's parts with accuracy after SFT, and with MIR over all arms."""
    sets = {name: _sets(records)[name] for name in ("(a)", "all", "all but the untrained")}
    rows = []
    for name, part in PARTS.items():
        found = [correlation(chosen, part, BUDGET) for chosen in sets.values()]
        values = [[each(record) for record in sets["all"]] for each in (part, PARTS["MIR"])]
        rows.append([name, *found, f"{spearman(*values):+.2f}"])
    ratios = np.array([norm_ratios(record) for record in sets["all"]])
    spans = [f"{low:.2f} to {high:.2f}" for low, high in zip(ratios.min(0), ratios.max(0), strict=True)]
    told = f"Vision norm over text norm, layer by layer, lowest to highest arm: {', '.join(spans)}."
    return [*table(["part", *sets, "with MIR, all"], rows), told]


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
        "",
        "Exact p values: the settings of a question change places, with their seeds' MIR, in every",
        "order there is; p is the share of orders whose coefficient is at least as far from 0, either",
        "way. Of four settings it is 0.042 at least, of five 0.008: the former cannot be below .05",
        "after Holm, the latter not as the smallest. In (k), norms are taken out by the mean norms of",
        "both modalities: (F - (q - 1)^2) / q of each layer, q the ratio of norms.",
    ]
    for letter, (title, _) in QUESTIONS.items():
        lines += ["", f"## ({letter}) {title}", *settings_table(records, letter)]
    lines += ["## Correlation with accuracy after SFT", *correlations(records)]
    lines += ["## Exact permutation tests of MIR", *significance(records)]
    lines += ["## (f) MoCa, by seed", *moca_by_seed(records)]
    lines += ["## (g) Convergence", *curves(records)]
    lines += ["## (i) Evaluation inputs", *evaluation_inputs(inputs, records), *sample_sizes(inputs)]
    lines += ["## (j) Exact against published fast", *disagreements(records)]
    lines += ["## (k) Parts of MIR", *parts(records)]
    return "\n".join(lines).rstrip() + "\n"


MARKERS = "os^DvP*X"
LEAST = min(arm.pairs for arm in QUESTIONS["a"][1] if arm.pairs)
"""Pairs of the shortest pre-training, up to which an axis of pairs is linear: none has no logarithm."""


def by_setting(records: Iterable[Record]) -> list[list[Record]]:
    """Records of each setting, one a seed."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(setting(record), []).append(record)
    return list(groups.values())


def mean_and_spread(
    groups: Iterable[Iterable[Record]], value: Callable[[Record], Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the seeds of each group [groups, ...]."""
    values = [np.array([value(record) for record in group]) for group in groups]
    return np.array([v.mean(0) for v in values]), np.array([v.std(0, ddof=1) for v in values])


def plot_scatter(records: dict[str, Record]) -> Any:
    """Accuracy after SFT over MIR, the published default mode and caption loss, by question."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, name in zip(axes, (*BOTH, "caption loss"), strict=True):
        for marker, (letter, (title, _)) in zip(MARKERS, QUESTIONS.items(), strict=True):
            groups = by_setting(_of(records, letter))
            (x, wide), (y, high) = (
                mean_and_spread(groups, each) for each in (PREDICTORS[name], accuracy)
            )
            style = {"fmt": marker, "ms": 5, "alpha": 0.75, "elinewidth": 0.8}
            axis.errorbar(x, y, xerr=wide, yerr=high, label=f"({letter}) {title}", **style)
        axis.set_xlabel(f"{name} of the pre-trained model")
        axis.grid(alpha=0.3, lw=0.4)
    axes[0].set_ylabel(f"accuracy after SFT on {BUDGET}")
    figure.suptitle("A point a setting: mean and standard deviation of three seeds", fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    return figure


def plot_scale(records: dict[str, Record]) -> Any:
    """MIR, the published default mode and accuracy over the pairs of (a)."""
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.2), layout="constrained")
    kinds = {name: PREDICTORS[name] for name in BOTH} | {f"accuracy after SFT on {BUDGET}": accuracy}
    groups = by_setting(sorted(_of(records, "a"), key=lambda r: r["arm"]["pairs"]))
    pairs = [group[0]["arm"]["pairs"] for group in groups]
    for axis, (name, value) in zip(axes, kinds.items(), strict=True):
        mean, spread = mean_and_spread(groups, value)
        for group, number in zip(groups, pairs, strict=True):
            axis.plot([number] * len(group), [value(r) for r in group], "o", color="0.65", ms=4)
        axis.errorbar(pairs, mean, yerr=spread, fmt="o-", color="#0072B2", capsize=3)
        axis.set_xscale("symlog", linthresh=LEAST, linscale=0.7)
        axis.set_xticks(pairs, [f"{number // 1000}k" if number else "0" for number in pairs])
        axis.set_xticks([], minor=True)
        axis.set(xlabel=f"pairs of pre-training (0: untrained)\nlog scale from {LEAST} on", ylabel=name)
        axis.grid(alpha=0.3, lw=0.4)
    figure.suptitle("Mean and standard deviation of three seeds, and the seeds in grey", fontsize=10)
    return figure


def plot_layers(records: dict[str, Record]) -> Any:
    """Distance and ratio of norms of every layer over the pairs of (a)."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
    groups = by_setting(sorted(_of(records, "a"), key=lambda r: r["arm"]["pairs"]))
    shades = plt.get_cmap("viridis")(np.linspace(0, 0.92, len(groups)))
    kinds = {"Fréchet distance": lambda r: layers(r, "frechet"), "vision norm / text norm": norm_ratios}
    for axis, (name, value) in zip(axes, kinds.items(), strict=True):
        means, spreads = mean_and_spread(groups, value)
        numbers = np.arange(1, means.shape[1] + 1)
        for place, (group, mean, spread) in enumerate(zip(groups, means, spreads, strict=True)):
            # Side by side, so that bars do not hide each other.
            x = numbers + 0.04 * (place - (len(groups) - 1) / 2)
            label = f"{group[0]['arm']['pairs']:,}"
            axis.errorbar(
                x, mean, yerr=spread, fmt="o-", ms=4, capsize=2, color=shades[place], label=label
            )
        axis.set(xlabel="decoder layer", ylabel=name, xticks=numbers)
        axis.grid(alpha=0.3, lw=0.4)
    axes[0].legend(title="pairs of pre-training", fontsize=8, title_fontsize=8)
    figure.suptitle("Mean and standard deviation of three seeds", fontsize=10)
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
