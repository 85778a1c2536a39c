"""`mir-task zoo`: every model of a list, and the leaderboard of what they left."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mir_task.commands.reports import runs_in
from mir_task.commands.zoo_list import LAUNCHERS, Options, read, shell_commands
from mir_task.commands.zoo_runs import Outcome, Zoo


def _parts(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    """Parts of a text with commas between them."""
    return tuple(part for part in value.split(",") if part)


def _seconds(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """A time such as 90, 30m or 8h."""
    if value is None:
        return None
    number, unit = (value[:-1], value[-1]) if value[-1:] in ("s", "m", "h") else (value, "s")
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600}[unit]
    except ValueError:
        raise click.BadParameter(f"{value!r} is no time such as 90, 30m or 8h") from None


def _variables(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """NAME=VALUE pairs."""
    for value in values:
        if "=" not in value:
            raise click.BadParameter(f"{value!r} is not of the form NAME=VALUE")
    return dict(value.split("=", 1) for value in values)


@click.command(context_settings={"show_default": True})
@click.argument("models", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--tasks",
    default="",
    callback=_parts,
    help="In the place of the file's, with commas between.",
)
@click.option("--output_path", "folder", type=click.Path(path_type=Path), required=True)
@click.option("--launcher", type=click.Choice(list(LAUNCHERS)), default="none", help="Of each run.")
@click.option("--processes", type=click.IntRange(min=1), default=1, help="Of each run, by the launcher.")
@click.option("--time-limit", callback=_seconds, help="Of each run: seconds, or 30m, or 8h.")
@click.option(
    "--env", "environment", multiple=True, callback=_variables, help="NAME=VALUE for each run."
)
@click.option(
    "--gpus",
    default="",
    callback=_parts,
    help="Such as 0,1: a run on each at a time; one run without.",
)
@click.option("--retry-failed", is_flag=True, help="Run again what failed before.")
@click.option("--only", multiple=True, help="Name of a run; others are left alone.")
@click.option("--dry-run", is_flag=True, help="Say what would run.")
@click.option("--print-commands", is_flag=True, help="Print one command a model, for a scheduler.")
def zoo(
    models: Path,
    tasks: tuple[str, ...],
    folder: Path,
    retry_failed: bool,
    only: tuple[str, ...],
    dry_run: bool,
    print_commands: bool,
    **options: Any,
) -> None:
    """Measure each model of MODELS, a file as for lmms-eval's --config, in a process of its own.

    What is finished in the output folder is not run again, so that the same command goes on after
    whatever stopped it. Exit code 1 when a model failed.
    """
    from mir_task.reports import leaderboard

    runs = read(models, tasks)
    if only:
        if unknown := set(only) - {run.name for run in runs}:
            raise click.UsageError(f"no run is named {', '.join(sorted(unknown))} in {models}")
        runs = [run for run in runs if run.name in only]
    if print_commands:
        click.echo("\n".join(shell_commands(models, runs, _given(click.get_current_context()))))
        return
    batch = Zoo(runs, folder, Options(**options))
    if dry_run:
        for run in runs:
            known = batch.before(run)
            again = known is not None and known.state == "failed before" and retry_failed
            would = "would run" if known is None or again else f"{known.state}: {known.detail}"
            click.echo(f"{run.name}: {would}")
        return
    outcomes = []
    for outcome in batch.run(retry_failed=retry_failed):
        outcomes.append(outcome)
        click.echo(progress_line(outcome, outcomes, len(runs), len(batch.options.gpus)))
    click.echo(summary(outcomes))
    board = leaderboard.board(runs_in([folder]))
    if board["groups"]:
        click.echo(f"\n{leaderboard.markdown(board)}")
    if any("failed" in outcome.state for outcome in outcomes):
        raise SystemExit(1)


def _given(context: click.Context) -> list[str]:
    """The options that were given, but for those that choose among the models."""
    words = []
    for parameter in context.command.params:
        value, name = context.params[str(parameter.name)], parameter.opts[0]
        given = context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        if not given or parameter.name in ("models", "only", "print_commands", "dry_run"):
            continue
        if isinstance(value, dict):
            words += [word for key, each in value.items() for word in (name, f"{key}={each}")]
        elif isinstance(value, bool):
            words.append(name)
        else:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            words += [name, ",".join(value) if isinstance(value, tuple) else text]
    return words


def progress_line(outcome: Outcome, so_far: Sequence[Outcome], total: int, at_once: int) -> str:
    """A line on a run that is over, with the time that the others may take."""
    ran = [each.seconds for each in so_far if each.seconds]
    line = f"[{len(so_far)}/{total}] {outcome.run.name}: {outcome.state}"
    if outcome.seconds:
        line += f" in {outcome.seconds:.0f} s"
    left = total - len(so_far)
    if ran and left:
        minutes = sum(ran) / len(ran) * left / max(at_once, 1) / 60
        line += f", about {minutes:.0f} min left"
    return f"{line}: {outcome.detail}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many runs ended how, and those that failed with the reason."""
    states = Counter(outcome.state for outcome in outcomes)
    lines = [", ".join(f"{number} {state}" for state, number in states.items())]
    for outcome in outcomes:
        if "failed" in outcome.state:
            lines.append(f"  {outcome.run.name}: {outcome.detail}")
    if states["failed before"]:
        lines.append("  run what failed before again with --retry-failed")
    return "\n".join(lines)
