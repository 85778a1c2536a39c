"""Tables and plots from the stored JSON lines: `python -m studies.decoders.report`.

Signs are set so that +1 means: the indicator orders arms as it claims to.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

from studies.alignment.report import holm, table
from studies.decoders.recipes import DECODERS, Recipe
from studies.decoders.run import RESULTS, read

RESAMPLES = 2000
PERMUTATIONS = 20_000
Record = dict[str, Any]
Figure = Callable[[Record], float]


def seen(record: Record) -> float:
    """Logarithm of pictures seen, none as one."""
    return math.log(max(Recipe(**record["recipe"]).seen, 1))


def distances(record: Record) -> np.ndarray:
    """F_k of every decoder layer."""
    return np.array([layer["frechet"] for layer in record["mir"]["layers"]])


def third(number: int) -> Figure:
    """Mean of log10 F_k over a third of the layers, the first, middle or last, by sign."""

    def figure(record: Record) -> float:
        parts = np.array_split(np.log10(distances(record)), 3)
        return -float(parts[number].mean())

    return figure


def cka(where: str) -> Figure:
    """CKA at the decoder's input or after the middle layer."""

    def figure(record: Record) -> float:
        layers = record["mir"]["layers"]
        layer = record["mir"]["input_layer"] if where == "input" else layers[len(layers) // 2 - 1]
        return float(layer["cka"])

    return figure


def caption(key: str, *, own: bool = False) -> Figure:
    """A figure of captions: on full ones, or on those of the arm's own format."""

    def figure(record: Record) -> float:
        return float(record["captions"][record["recipe"]["style"] if own else "full"][key])

    return figure


def minus(figure: Figure) -> Figure:
    """With the other sign."""
    return lambda record: -figure(record)


FAMILY: dict[str, Figure] = {
    "caption gain": caption("caption_gain"),
    "CKA at the input": cka("input"),
    "scale-free MIR": lambda r: -r["mir"]["scale_free_mir"],
    "late-layer MIR": third(-1),
}
"""The four hypotheses that Holm's correction is over."""
MIR: Figure = lambda r: -r["mir"]["mir"]  # noqa: E731
COMPARATORS: dict[str, Figure] = {
    "MIR": MIR,
    "first-layer MIR": third(0),
    "middle-layer MIR": third(1),
    "CKA in the middle": cka("middle"),
    "caption loss": minus(caption("caption_loss")),
    "caption loss, own format": minus(caption("caption_loss", own=True)),
    "caption gain, own format": caption("caption_gain", own=True),
    "retrieval by likelihood": caption("retrieval"),
    "pictures seen": seen,
}
INDICATORS = {**FAMILY, **COMPARATORS}
PAIRED = ("caption gain",)
"""Of the family: those that need pairs, and have to tell more than caption loss does."""
OUTCOMES: dict[str, Figure] = {
    "accuracy": lambda r: float(r["outcome"]["accuracy"]),
    "answer loss": lambda r: -float(r["outcome"]["answer_loss"]),
}

PRIOR_CORRECTED: Figure = lambda r: float(r["outcome"]["prior_corrected_accuracy"])  # noqa: E731
"""Described, not tested: where classes are answered by their log-probability less its mean."""


class Sample:
    """Arms of one or more decoders; correlations are of ranks within each decoder.

    Args:
        records: of the arms.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = list(records)
        names = np.array([record["recipe"]["decoder"] for record in self.records])
        self.groups = [np.flatnonzero(names == name) for name in dict.fromkeys(names)]

    def __len__(self) -> int:
        return len(self.records)

    def values(self, figure: Figure) -> np.ndarray:
        """A figure of every arm."""
        return np.array([figure(record) for record in self.records])

    def spearman(self, x: Figure, y: Figure, given: Figure | None = None) -> tuple[float, np.ndarray]:
        """Mean over decoders of the rank correlation, and the same of every resample."""
        columns = [self.values(each) for each in (x, y, given) if each is not None]
        # Arms are drawn with replacement within each decoder: the same ones for every figure.
        random = np.random.default_rng(0)
        found = []
        for rows in self.groups:
            drawn = random.choice(rows, (RESAMPLES, len(rows)))
            found.append(_correlation(*(column[np.vstack([rows, drawn])] for column in columns)))
        with np.errstate(invalid="ignore"):
            known = ~np.isnan(found)
            means = np.where(known, found, 0).sum(0) / known.sum(0)
        return float(means[0]), means[1:]

    def p(self, x: Figure, y: Figure) -> float:
        """Two-sided p of `spearman` by permuting outcomes within each decoder."""
        random = np.random.default_rng(1)
        ranks = [
            [scipy.stats.zscore(scipy.stats.rankdata(self.values(each)[group])) for each in (x, y)]
            for group in self.groups
        ]

        found = abs(np.mean([np.mean(a * b) for a, b in ranks]))
        drawn = [random.permuted(np.tile(b, (PERMUTATIONS, 1)), axis=1) @ a / len(a) for a, b in ranks]
        reached = (abs(np.mean(drawn, 0)) >= found - 1e-12).sum()
        return float(reached + 1) / (PERMUTATIONS + 1)


def _correlation(*columns: np.ndarray) -> np.ndarray:
    """Spearman's coefficient of each row of two columns [samples, arms]; partial where there is a third.

    NaN where a column has fewer than three distinct values, or the third explains one of the others.
    """
    ranks = np.stack([scipy.stats.rankdata(column, axis=1) for column in columns])
    distinct = (np.diff(np.sort(ranks, -1), axis=-1) > 0).sum(-1).min(0) + 1
    ranks -= ranks.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        ranks /= np.linalg.norm(ranks, axis=-1, keepdims=True)
        r = np.einsum("sa,sa->s", ranks[0], ranks[1])
        if len(columns) > 2:
            a, b = (np.einsum("sa,sa->s", each, ranks[2]) for each in ranks[:2])
            rest = (1 - a**2) * (1 - b**2)
            r = np.where(rest > 1e-9, (r - a * b) / np.sqrt(rest), np.nan)
    return np.where(distinct < 3, np.nan, r)


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """95% percentile interval."""
    known = drawn[~np.isnan(drawn)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (math.nan, math.nan)
    return float(low), float(high)


def shown(found: tuple[float, np.ndarray]) -> str:
    """A coefficient with its interval; a dash where a figure is the same for all."""
    if math.isnan(found[0]):
        return "-"
    low, high = interval(found[1])
    return f"{found[0]:+.2f} [{low:+.2f}, {high:+.2f}]"


def correlations(samples: dict[str, Sample], y: Figure, given: Figure | None = None) -> list[str]:
    """Every indicator with an outcome, in each sample."""
    rows = [
        [name, *(shown(sample.spearman(x, y, given)) for sample in samples.values())]
        for name, x in INDICATORS.items()
        if x is not given
    ]
    return table(["indicator", *(f"{name} ({len(each)})" for name, each in samples.items())], rows)


def hypotheses(every: Sample, outcome: str) -> list[str]:
    """The family: pooled coefficient, Holm's p, each decoder's sign, and whether the rule is met."""
    y = OUTCOMES[outcome]
    loss = COMPARATORS["caption loss"]
    corrected = holm([every.p(x, y) for x in FAMILY.values()])
    rows = []
    for (name, x), p in zip(FAMILY.items(), corrected, strict=True):
        value, drawn = every.spearman(x, y)
        alone = [Sample([every.records[i] for i in rows]).spearman(x, y)[0] for rows in every.groups]
        base, base_drawn = every.spearman(MIR, y)
        beyond = (value - base, drawn - base_drawn)
        beyond_seen = every.spearman(x, y, seen)
        given = every.spearman(x, y, loss)
        rule = [interval(drawn)[0] > 0, p < 0.05, min(alone) > 0, interval(beyond[1])[0] > 0]
        if name in PAIRED:
            rule.append(interval(given[1])[0] > 0)
        rows.append(
            [
                name,
                shown((value, drawn)),
                f"{p:.4f}",
                " ".join(f"{each:+.2f}" for each in alone),
                shown(beyond),
                shown(given),
                shown(beyond_seen),
                "yes" if all(rule) else "no",
            ]
        )
    head = ["indicator", outcome, "Holm's p over 4", "by decoder", "minus that of MIR"]
    return table([*head, "given caption loss", "given pictures seen", "rule met"], rows)


def layerwise(records: Sequence[Record]) -> list[str]:
    """Of every layer: how its distance goes with pictures seen, and with accuracy."""
    sample = Sample(records)
    rows = []
    for number in range(len(records[0]["mir"]["layers"])):

        def distance(record: Record, number: int = number) -> float:
            return float(distances(record)[number])

        pictures = shown(sample.spearman(distance, seen))
        rows.append([number + 1, pictures, shown(sample.spearman(distance, OUTCOMES["accuracy"]))])
    return table(["layer", "F_k with pictures seen", "F_k with accuracy"], rows)


def arms_table(records: Sequence[Record]) -> list[str]:
    """Every arm's recipe and main figures."""
    rows = []
    for record in records:
        recipe = Recipe(**record["recipe"])
        norm = "matched" if recipe.matched_norm else f"x {recipe.scale:g}"
        full = record["captions"]["full"]
        rows.append(
            [
                recipe.name,
                f"{recipe.pairs} x {recipe.epochs}",
                f"{recipe.style}, {recipe.shuffled:.0%} shuffled" if recipe.shuffled else recipe.style,
                f"{recipe.learning_rate:g}",
                f"{recipe.connector}, {norm}",
                recipe.unlocked,
                f"{record['mir']['mir']:.3f}",
                f"{record['mir']['scale_free_mir']:.3f}",
                f"{record['mir']['input_layer']['cka']:.2f}",
                f"{full['caption_loss']:.3f}",
                f"{full['caption_gain']:.3f}",
                f"{full['retrieval']:.2f}",
                f"{record['outcome']['accuracy']:.3f}",
                f"{record['outcome']['answer_loss']:.3f}",
            ]
        )
    recipe_head = ["arm", "pairs x epochs", "captions", "rate", "connector, scale", "unlocked"]
    measured = ["MIR", "scale-free", "CKA, input", "caption loss", "caption gain", "retrieval"]
    return table([*recipe_head, *measured, "accuracy", "answer loss"], rows)


def subsets(records: Sequence[Record]) -> dict[str, Sample]:
    """All arms and parts of them."""
    kinds: dict[str, Callable[[Recipe], bool]] = {
        "all": lambda r: True,
        "at equal n": lambda r: r.seed % 20 >= 6,
        "full captions": lambda r: r.style == "full",
        "brief captions": lambda r: r.style != "full",
        "frozen decoder": lambda r: r.unlocked == "connector",
        "unlocked": lambda r: r.unlocked != "connector",
    }
    return {
        name: Sample(record for record in records if kind(Recipe(**record["recipe"])))
        for name, kind in kinds.items()
    }


def tables(arms: dict[str, list[Record]]) -> str:
    """All tables, in Markdown."""
    every = [record for records in arms.values() for record in records]
    by_decoder = {name: Sample(records) for name, records in arms.items()}
    small = [record for record in every if record["recipe"]["decoder"] != "smollm2"]
    first = {"pooled": Sample(every)}
    if len(small) < len(every):  # the two decoders whose arms were known before the third's
        first["small"] = Sample(small)
    by_decoder = first | by_decoder
    lines = ["# Tables of the second study", "", "Written by `python -m studies.decoders.report`."]
    for outcome in OUTCOMES:
        lines += ["", f"## The four hypotheses, {outcome}", *hypotheses(Sample(every), outcome)]
        lines += [f"## All indicators, {outcome}", *correlations(by_decoder, OUTCOMES[outcome])]
    given = correlations(by_decoder, OUTCOMES["accuracy"], seen)
    lines += ["## Given the logarithm of pictures seen, accuracy", *given]
    corrected = [record for record in every if "prior_corrected_accuracy" in record["outcome"]]
    if corrected:
        found = correlations({"smollm2": Sample(corrected)}, PRIOR_CORRECTED)
        lines += ["## Accuracy corrected by each class's prior", *found]
    parts = correlations(subsets(every), OUTCOMES["accuracy"])
    lines += ["## Parts of the arms, accuracy, decoders pooled", *parts]
    for name, records in arms.items():
        lines += [
            f"## Layers of {name}",
            *layerwise(records),
            f"## Arms of {name}",
            *arms_table(records),
        ]
    return "\n".join(lines) + "\n"


def scatter(arms: dict[str, list[Record]]) -> Any:
    """The family, MIR and caption loss against accuracy, a row a decoder."""
    chosen = {**FAMILY, "MIR": MIR, "caption loss": COMPARATORS["caption loss"]}
    figure, axes = plt.subplots(
        len(arms), len(chosen), figsize=(2.6 * len(chosen), 2.7 * len(arms)), squeeze=False
    )
    for row, (decoder, records) in zip(axes, arms.items(), strict=True):
        sample = Sample(records)
        equal = np.array([record["recipe"]["seed"] % 20 >= 6 for record in records])
        right = sample.values(OUTCOMES["accuracy"])
        for axis, (name, x) in zip(row, chosen.items(), strict=True):
            values = sample.values(x)
            for mask, marker, label in ((equal, "o", "n pictures"), (~equal, "^", "fewer or more")):
                axis.scatter(values[mask], right[mask], s=16, marker=marker, label=label)
            axis.set_title(f"{sample.spearman(x, OUTCOMES['accuracy'])[0]:+.2f}", fontsize=9)
            sign = "" if name in ("caption gain", "CKA at the input") else "−"
            axis.set_xlabel(f"{sign}{name}", fontsize=8)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel(f"{decoder}: accuracy after SFT", fontsize=8)
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def layers_plot(arms: dict[str, list[Record]]) -> Any:
    """Rank correlation of each layer's distance with pictures seen and with accuracy."""
    figure, axes = plt.subplots(1, len(arms), figsize=(4 * len(arms), 3), sharey=True, squeeze=False)
    for axis, (decoder, records) in zip(axes[0], arms.items(), strict=True):
        sample = Sample(records)
        numbers = np.arange(1, len(records[0]["mir"]["layers"]) + 1)
        for label, y in {"pictures seen": seen, "accuracy": OUTCOMES["accuracy"]}.items():
            found = [sample.spearman(lambda r, k=k: float(distances(r)[k - 1]), y) for k in numbers]
            bounds = np.array([interval(drawn) for _, drawn in found]).T
            axis.plot(numbers, [value for value, _ in found], marker="o", ms=3, label=f"with {label}")
            axis.fill_between(numbers, *bounds, alpha=0.2)
        axis.axhline(0, color="grey", lw=0.7)
        axis.set_title(f"{decoder}, {len(records)} arms", fontsize=9)
        axis.set_xlabel("decoder layer")
    axes[0][0].set_ylabel("Spearman of F_k (95%)")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    return figure


def arms_of(folder: Path) -> dict[str, list[Record]]:
    """Stored arms of the decoders that have any, in the order of their seeds."""
    found = {name: read(folder / f"{name}.jsonl") for name in DECODERS}
    return {name: [arms[each] for each in sorted(arms)] for name, arms in found.items() if arms}


def main() -> None:
    """Write tables and plots beside the JSON."""
    plt.switch_backend("agg")
    arms = arms_of(RESULTS)
    (RESULTS / "tables.md").write_text(tables(arms), "utf-8")
    for name, plot in {"scatter": scatter, "layers": layers_plot}.items():
        plot(arms).savefig(RESULTS / f"{name}.png", dpi=110)


if __name__ == "__main__":
    main()
