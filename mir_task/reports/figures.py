"""Parts of a picture: figures that grow with their legend, scales that are named, colours.

Colours of models are those of Okabe and Ito (2008), which colour-blind readers tell apart; markers or
lines say the same once more. Models in an order have those of one map from dark to light.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mir_task.files import written_whole
from mir_task.reports.panels import Panel

LINES = ("-", "--", ":")
MARKERS = "os^Dv*P<"  # not as many as colours, so that both together say more
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LIGHTEST = 0.92  # of viridis, whose end is hardly seen on white


def colours(count: int, *, ordered: bool = False) -> list[Any]:
    """Of so many models; they repeat, with other markers, where the models have no order."""
    if not ordered:
        return [_COLOURS[n % len(_COLOURS)] for n in range(count)]
    from matplotlib import colormaps

    return [colormaps["viridis"](_LIGHTEST * n / max(count - 1, 1)) for n in range(count)]


def panels_of(count: int, *, columns: int, side: float = 4.4) -> tuple[Any, list[Any]]:
    """A figure and the axes of its panels."""
    from matplotlib.figure import Figure

    rows = -(-count // columns)
    size = (max(side * columns, 6), side * 0.86 * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained", dpi=150)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for unused in axes[count:]:
        unused.remove()
    return figure, list(axes[:count])


def legend_of_curves(axes: Any, panel: Panel, tokens: str, models: int) -> None:
    """Which line is which, of a panel of several, with so many models in it."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            ls=line,
            color=curve.colour if models == 1 else "0.3",
            marker=MARKERS[n] if models == 1 else None,
            ms=4,
            label=curve.label.format(tokens=tokens),
        )
        for n, (curve, line) in enumerate(zip(panel.curves, LINES, strict=False))
    ]
    # To look for the best place among many curves takes long, and there is none.
    place = "best" if models < 10 else "upper right"
    axes.legend(handles=handles, fontsize=8, handlelength=3, loc=place)


def legend_of_models(figure: Any, names: Sequence[str], painted: Sequence[Any], note: str) -> None:
    """Which model is which, below the panels, for which the figure grows.

    Args:
        figure: without other legends of its own.
        names: of the models, with their values.
        painted: their colours.
        note: above the names.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=MARKERS[n % len(MARKERS)], label=name)
        for n, (name, colour) in enumerate(zip(names, painted, strict=True))
    ]
    width, height = figure.get_size_inches()
    title = "\n".join(textwrap.wrap(note, int(width * 14)))  # characters of size 8 that an inch holds
    for columns in range(min(4, len(names)), 0, -1):
        legend = figure.legend(
            handles=handles,
            loc="outside lower center",
            fontsize=8,
            ncols=columns,
            title=title or None,
            title_fontsize=8,
        )
        box = legend.get_tightbbox()
        if columns == 1 or box.width / figure.dpi <= width:
            break
        legend.remove()
    figure.set_size_inches(max(width, box.width / figure.dpi + 0.2), height + box.height / figure.dpi)


def name_axes(axes: Any, panel: Panel, tokens: str, *, errors: bool) -> None:
    """Scale, ticks and labels of a panel.

    Args:
        axes: with its curves.
        panel: that is drawn in it.
        tokens: what the tokens that are compared with text are called.
        errors: whether some of its curves have error bars.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    if panel.log:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        if 5 < high / low < 1000:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}" if high / low <= 5 else NullFormatter())
        axes.tick_params(axis="y", which="minor", labelsize=7)
    elif panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.set_ylabel(panel.axis_label(tokens, errors=errors))
    axes.set_xlabel("decoder layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3, which="both", lw=0.4)


def save(figure: Any, path: Path) -> None:
    """Write a figure, whole or not at all, in the format that its ending names."""
    import matplotlib as mpl

    # Letters stay letters, as journals ask for, and not drawings of them.
    with mpl.rc_context({"pdf.fonttype": 42}), written_whole(path) as partial:
        figure.savefig(partial)
