"""Pictures: curves over the layers, and a sample of the tokens in two dimensions."""

import collections
import itertools
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mir_task.errors import MIRError
from mir_task.files import written_whole
from mir_task.reports import figures
from mir_task.reports.ground import Ground, differences, settled
from mir_task.reports.panels import (
    DIAGNOSTICS,
    DISTANCE,
    NORMS,
    TERMS,
    TEXT,
    UNIT,
    VISION,
    Panel,
    standard_errors,
)
from mir_task.reports.records import read_record
from mir_task.reports.side_file import SideFile
from mir_task.result import MIRResult
from mir_task.settings import TOKENS

Numbers = NDArray[Any]
TokenRows = Mapping[int, tuple[Numbers, Numbers]]
"""Of some vision and some text tokens [n, d], float32, by layer number."""

ENDINGS = (".png", ".svg", ".pdf")
METHODS = ("pca", "tsne")
_PERPLEXITY = 30


def draw_layers(
    results: Mapping[str, MIRResult],
    path: Path,
    *,
    title: str = "",
    tokens: str = "vision",
    diagnostic: str | None = None,
    ordered: bool = False,
    note: str = "",
) -> None:
    """Draw F_k and its two terms, the raw norms of both modalities and a diagnostic over the layers.

    A diagnostic is drawn of the decoder's input too, as layer 0, where it was measured. Error bars are
    of the jackknife over documents, where a result has it.

    Args:
        results: to draw over each other, by their labels.
        path: of the image file, PNG, SVG or PDF by its ending.
        title: above the panels.
        tokens: what the tokens that are compared with text are called.
        diagnostic: one of `DIAGNOSTICS`.
        ordered: whether the results have an order, as checkpoints of a training; their colours then go
            from dark to light.
        note: above the labels, where there are several results.

    Raises:
        MIRError: a result that lacks the diagnostic.
    """
    alone = len(results) == 1
    distances = (
        [Panel(f"Fréchet distance {UNIT}", (DISTANCE, *TERMS))]
        if alone
        else [
            Panel(f"Fréchet distance $F_k$ {UNIT}", (DISTANCE,)),
            Panel(f"terms of $F_k$ {UNIT}", TERMS),
        ]
    )
    panels = [*distances, NORMS, *([DIAGNOSTICS[diagnostic]] if diagnostic else [])]
    contents = {label: result.to_dict() for label, result in results.items()}
    for panel, (label, content) in itertools.product(panels, contents.items()):
        if not _holds(content, panel):
            there = [name for name, other in DIAGNOSTICS.items() if _holds(content, other)]
            raise MIRError(
                f"{label}: the side file lacks {diagnostic} (an older one, or without mir_extras): "
                f"measure again, or choose another --diagnostic of {', '.join(there)}"
            )
    painted = figures.colours(len(results), ordered=ordered)
    figure, all_axes = figures.panels_of(len(panels), columns=len(panels) if alone else 2)
    for axes, panel in zip(all_axes, panels, strict=True):
        has_errors = False
        for n, (label, content) in enumerate(contents.items()):
            layers = panel.layers(content)
            numbers = [layer["layer"] for layer in layers]
            for of_panel, (curve, line) in enumerate(zip(panel.curves, figures.LINES, strict=False)):
                values = [layer[curve.key] for layer in layers]
                colour = curve.colour if alone else painted[n]
                marker = figures.MARKERS[(of_panel if alone else n) % len(figures.MARKERS)]
                axes.plot(numbers, values, line, color=colour, marker=marker, ms=4, lw=1.3)
                if errors := standard_errors(results[label], curve.key):
                    has_errors = True
                    bars = [errors.get(number, np.nan) for number in numbers]
                    axes.errorbar(numbers, values, bars, fmt="none", ecolor=colour, capsize=2, lw=0.9)
        if len(panel.curves) > 1:
            figures.legend_of_curves(axes, panel, tokens, len(results))
        figures.name_axes(axes, panel, tokens, errors=has_errors)
    if alone:
        (result,) = results.values()
        title = f"{title}\n{_values(result)}"
    else:
        names = [f"{label}: {_values(result)}" for label, result in results.items()]
        figures.legend_of_models(figure, names, painted, note)
    figure.suptitle(title, fontsize=11)
    figures.save(figure, path)


def _holds(content: Mapping[str, Any], panel: Panel) -> bool:
    """Whether a result has all that a panel draws."""
    return all(layer[curve.key] is not None for curve in panel.curves for layer in content["layers"])


def draw_side_files(
    sources: Sequence[Path],
    path: Path,
    diagnostic: str,
    *,
    labels: Sequence[str] = (),
    title: str | None = None,
    ordered: bool = False,
) -> list[str]:
    """As `draw_layers`, of side files.

    Args:
        sources: side files.
        path: of the image file.
        diagnostic: one of `DIAGNOSTICS`.
        labels: one a side file; where there are none, what tells it from the others.
        title: above the panels; what all have in common where it is None.
        ordered: as of `draw_layers`.

    Returns:
        Which values do not compare with most, and why, a sentence each. The picture says so too.

    Raises:
        MIRError: a file is none, or lacks the diagnostic; or labels are too many, too few or equal.
    """
    records = [read_record(source) for source in sources]
    reports = [record.result for record in records if isinstance(record.result, SideFile)]
    names = [
        (_short_name(report.model_name), report.task, str(source))
        for report, source in zip(reports, sources, strict=True)
    ]
    shared = [len({name[part] for name in names}) == 1 for part in range(3)]
    if not labels:
        labels = _labels(names, shared)
    elif len(labels) != len(sources) or len(set(labels)) != len(labels):
        raise MIRError(
            f"--labels are {len(labels)} ({', '.join(labels)}) for {len(sources)} side files: give each "
            "side file one of its own, with commas between them"
        )
    grounds = settled(record.ground for record in records if record.ground)
    apart = _do_not_compare(labels, [grounds[of.ground] if of.ground else None for of in records])
    kinds = {TOKENS[report.modality] for report in reports}
    common = _joined(names[0][part] for part in (1, 0) if shared[part])
    draw_layers(
        dict(zip(labels, reports, strict=True)),
        path,
        title=common if title is None else title,
        tokens=kinds.pop() if len(kinds) == 1 else "media",
        diagnostic=diagnostic,
        ordered=ordered,
        note=" ".join(apart),
    )
    return apart


def _labels(names: Sequence[tuple[str, str, str]], shared: Sequence[bool]) -> list[str]:
    """The fewest parts of the names that tell them apart, without those that all have in common."""
    parts = next((n for n in range(1, 4) if len({name[:n] for name in names}) == len(names)), 3)
    return [
        _joined(part for part, same in zip(name[:parts], shared, strict=False) if not same) or name[0]
        for name in names
    ]


def _do_not_compare(labels: Sequence[str], grounds: Sequence[Ground | None]) -> list[str]:
    """Which do not compare with the ground that most have, and why: a sentence a reason."""
    ((common, _),) = collections.Counter(grounds).most_common(1)
    by_reason: dict[str, list[str]] = {}
    for label, ground in zip(labels, grounds, strict=True):
        if ground is not None and common is not None and ground != common:
            by_reason.setdefault("; ".join(differences(ground, common)), []).append(label)
    rest = [label for label, ground in zip(labels, grounds, strict=True) if ground == common]
    others = rest[0] if len(rest) == 1 else "the others"
    return [
        f"{', '.join(members)}: values do not compare with {others} ({reason})."
        for reason, members in by_reason.items()
    ]


def title_of(report: SideFile) -> str:
    """Task and model of a side file."""
    return _joined((report.task, _short_name(report.model_name)))


def _short_name(model: str) -> str:
    """The last two parts of a model's path or id."""
    return "/".join(model.rstrip("/").split("/")[-2:])


def _joined(parts: Iterable[str]) -> str:
    return " · ".join(filter(None, parts))


def write_rows(path: Path, rows: TokenRows, title: str, tokens: str) -> Path:
    """Write rows of some tokens, whole or not at all, for `draw_tokens`.

    Args:
        path: of a compressed .npz with `vision_K` and `text_K` of each layer K.
        rows: to write.
        title: of pictures.
        tokens: what the tokens that are compared with text are called.
    """
    arrays: dict[str, Any] = {
        f"{modality}_{number}": of_modality
        for number, of_layer in rows.items()
        for modality, of_modality in zip(("vision", "text"), of_layer, strict=True)
    }
    with written_whole(path) as partial:
        np.savez_compressed(partial, title=np.array(title), tokens=np.array(tokens), **arrays)
    return path


def draw_tokens(
    source: Path,
    path: Path,
    *,
    layers: Sequence[int] = (),
    method: str = "pca",
    title: str | None = None,
) -> None:
    """Draw vision and text tokens of some layers in two dimensions, as figure 2 of the paper does.

    Outliers among them (the 3-sigma rule) are left out and counted.

    Args:
        source: what `write_rows` wrote.
        path: of the image file, PNG, SVG or PDF by its ending.
        layers: their numbers, 0 for the decoder's input; the first, the middle and the last decoder
            layer where none is given.
        method: of `METHODS`: principal components of both modalities together, or t-SNE.
        title: above the panels; task, model and method where it is None.

    Raises:
        MIRError: a file or a layer that is not there, or scikit-learn is missing.
    """
    measured, tokens, rows = _read_rows(source, layers)
    figure, all_axes = figures.panels_of(len(rows), columns=min(len(rows), 3), side=3.6)
    for axes, (number, modalities) in zip(all_axes, rows.items(), strict=True):
        kept = [_without_outliers(of_modality) for of_modality in modalities]
        left_out = sum(map(len, modalities)) - sum(map(len, kept))
        points, names = _project(np.concatenate(kept), method)
        styles = ((f"{tokens} tokens", VISION, "o"), ("text tokens", TEXT, "^"))
        for part, (label, colour, marker) in zip(np.split(points, [len(kept[0])]), styles, strict=True):
            axes.scatter(*part.T, s=12, c=colour, marker=marker, alpha=0.55, lw=0, label=label)
        axes.set_title(
            f"layer {number}" + (f" (outliers left out: {left_out})" if left_out else ""), fontsize=9
        )
        axes.set_xlabel(names[0], fontsize=8)
        axes.set_ylabel(names[1], fontsize=8)
        axes.set_xticks([])
        axes.set_yticks([])
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=9, markerscale=2)
    drawn = _joined((measured, "t-SNE" if method == "tsne" else "PCA"))
    figure.suptitle(drawn if title is None else title, fontsize=11)
    figures.save(figure, path)


def _without_outliers(rows: Numbers) -> Numbers:
    """TokenRows [n, d] whose norms are at most 3 standard deviations from their lower median."""
    norms = np.linalg.norm(rows, axis=1)
    middle = np.quantile(norms, 0.5, method="lower")
    return rows[~(abs(norms - middle) > 3 * norms.std(ddof=1))]  # type: ignore[no-any-return]


def _read_rows(source: Path, layers: Sequence[int]) -> tuple[str, str, TokenRows]:
    try:
        file = np.load(source)
        numbers = sorted(int(name[5:]) for name in file.files if name.startswith("text_"))
        title, tokens = str(file["title"]), str(file["tokens"])
    except (OSError, EOFError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise MIRError(
            f"{source} holds no tokens ({error}): set mir_sample_rows: 300 in the task and measure, "
            "which writes such a file beside the side file"
        ) from None
    with file:
        known = [number for number in numbers if number > 0]
        chosen = layers or sorted({known[0], known[len(known) // 2], known[-1]})
        missing = [str(number) for number in chosen if number not in numbers]
        if missing:
            raise MIRError(
                f"{source} has no layer {', '.join(missing)}: it holds {', '.join(map(str, numbers))}"
            )
        rows = {number: (file[f"vision_{number}"], file[f"text_{number}"]) for number in chosen}
    return title, tokens, rows


def _project(rows: Numbers, method: str) -> tuple[Numbers, tuple[str, str]]:
    """TokenRows [n, d] in two dimensions [n, 2], and the names of these."""
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError:
        raise MIRError("--tokens takes scikit-learn: pip install 'mir-task[plot]'") from None
    if method == "tsne":
        perplexity = min(_PERPLEXITY, (len(rows) - 1) / 3)
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(rows), ("", "")
    pca = PCA(2, random_state=0)
    points = pca.fit_transform(rows)
    first, second = pca.explained_variance_ratio_
    return points, (f"first component ({first:.0%} of variance)", f"second ({second:.0%})")


def _values(result: MIRResult) -> str:
    """MIR, and caption gain where there is one, with their standard errors."""
    figures = {
        "MIR": (result.mir, result.mir_stderr),
        "caption gain": (result.caption_gain, result.caption_gain_stderr),
    }
    return _joined(
        f"{name} {value:.3f}" + ("" if error is None else f" ± {error:.3f}")
        for name, (value, error) in figures.items()
        if value is not None
    )
