"""Draw `docs/verdict.png`, what MIR and caption gain told: `python -m tools.verdict_picture`.

The 28 models of `studies/alignment` whose caption gain is stored, and their accuracy after SFT on 1,000
questions.
"""

import json
from pathlib import Path

import matplotlib.pyplot as plt
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "studies" / "alignment" / "results"
FIGURES = {
    "mir": "MIR (its paper: lower is better)",
    "caption_gain": "caption gain in nats a token (higher is better)",
}


def main() -> None:
    """Draw it."""
    gains = json.loads((RESULTS / "gain.json").read_text("utf-8"))
    runs = {name: json.loads((RESULTS / "runs" / f"{name}.json").read_text("utf-8")) for name in gains}
    accuracy = [run["accuracy"]["1000"]["all"] for run in runs.values()]
    colours = ["C1" if run["arm"]["pairs"] == 0 else "C0" for run in runs.values()]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (name, label) in zip(axes, FIGURES.items(), strict=True):
        values = [gain[name] for gain in gains.values()]
        axis.scatter(values, accuracy, c=colours, s=26, alpha=0.85)
        axis.set_xlabel(label)
        axis.set_title(f"Spearman {spearmanr(values, accuracy).statistic:+.2f}", fontsize=11)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("accuracy after fine-tuning")
    axes[0].scatter([], [], c="C0", s=26, label="connector pre-trained")
    axes[0].scatter([], [], c="C1", s=26, label="not pre-trained")
    axes[0].legend(frameon=False, fontsize=9, loc="center right")
    figure.savefig(ROOT / "docs" / "verdict.png", dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
