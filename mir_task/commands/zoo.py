"""`mir-task zoo`: every model of a list, and the leaderboard of what they left."""

import shlex
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from mir_task.commands.options import FILE, words
from mir_task.commands.reports import runs_in
from mir_task.commands.zoo_list import LAUNCHERS, Options, Run, read, shell_commands
from mir_task.commands.zoo_runs import Outcome, Process, Zoo
from mir_task.errors import did_you_mean
from mir_task.progress import EVERY, telling


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
@click.argument("models", type=FILE)
@click.option(
    "--tasks",
    metavar="NAMES",
    default="",
    callback=words,
    help="Tasks of all models, with commas between; those that the file names if left out.",
)
@click.option(
    "--output_path",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for results and logs, a folder in it for each model.",
)
@click.option(
    "--launcher",
    type=click.Choice(list(LAUNCHERS)),
    default="none",
    help="Start each model in several processes by this launcher.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    help="How many processes the launcher starts for each model.",
)
@click.option(
    "--time_limit",
    metavar="TIME",
    callback=_seconds,
    help="End a model that takes longer, as failed: seconds, or 30m, or 8h.",
)
@click.option(
    "--env",
    "environment",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_variables,
    help="Set an environment variable for the models; may be given several times.",
)
@click.option(
    "--gpus",
    metavar="NUMBERS",
    default="",
    callback=words,
    help="Measure one model at a time on each of these GPUs, such as 0,1; one model at a time if left "
    "out.",
)
@click.option("--retry_failed", is_flag=True, help="Measure again the models that failed before.")
@click.option(
    "--only",
    metavar="NAME",
    multiple=True,
    help="Measure the model of this name alone, as --dry_run prints names; may be given several times.",
)
@click.option("--dry_run", is_flag=True, help="Say which models would be measured, and measure none.")
@click.option(
    "--print_commands",
    is_flag=True,
    help="Print a command for each model, for a scheduler, and measure none.",
)
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
    """Measure many models one after the other, each in a process of its own, and rank them.

    MODELS is a YAML file as for lmms-eval's --config: a list of `model`, `model_args` and `tasks`. What
    is finished in the output folder is not measured again, so the same command goes on after whatever
    stopped it. Exit code 1 when a model failed.
    """
    runs = read(models, tasks)
    if only:
        names = [run.name for run in runs]
        for name in only:
            if name not in names:
                hint = did_you_mean(name, names)
                raise click.UsageError(
                    f"no run of {models.absolute()} is named {name!r}{hint}; there are "
                    f"{', '.join(names)}"
                )
        runs = [run for run in runs if run.name in only]
    if print_commands and options["gpus"]:
        raise click.UsageError(
            "--print_commands goes without --gpus: what runs the commands gives each its GPU"
        )
    if print_commands:
        click.echo("\n".join(shell_commands(models, runs, _given(click.get_current_context()))))
        return
    batch = Zoo(runs, folder, Options(**options))
    if dry_run:
        for run in runs:
            click.echo(f"{run.name}: {what_would_run(batch, run, retry_failed=retry_failed)}")
        return
    outcomes = run_batch(batch, retry_failed=retry_failed)
    click.echo(summary(outcomes))
    with telling("ranking"):
        from mir_task.reports import leaderboard

        board = leaderboard.board(runs_in([folder]))
    if board["groups"]:
        click.echo(f"\n{leaderboard.markdown(board)}")
    if any("failed" in outcome.state for outcome in outcomes):
        raise SystemExit(1)


def what_would_run(batch: Zoo, run: Run, *, retry_failed: bool) -> str:
    """What a batch would do with a run, for `--dry_run`."""
    known = batch.before(run)
    again = known is not None and known.state == "failed before" and retry_failed
    return "would run" if known is None or again else f"{known.state}: {known.detail}"


def run_batch(batch: Zoo, *, retry_failed: bool) -> list[Outcome]:
    """Run a batch, saying what goes on; its outcomes.

    Raises:
        SystemExit: it was broken off by Ctrl-C, with the command that goes on.
    """
    outcomes: list[Outcome] = []
    total = len(batch.runs)
    try:
        for outcome in batch.run(retry_failed=retry_failed, watch=_Progress(outcomes, total)):
            outcomes.append(outcome)
            click.echo(progress_line(outcome, outcomes, total, len(batch.options.gpus)))
    except KeyboardInterrupt:
        click.echo(
            f"\nbroken off: {len(outcomes)} of {total} models are over and stay. "
            f"The same command goes on with the others:\n  {_again()}",
            err=True,
        )
        raise SystemExit(130) from None
    return outcomes


class _Progress:
    """Says every few seconds what the running models do.

    Args:
        over: outcomes so far.
        total: number of models.
    """

    def __init__(self, over: Sequence[Outcome], total: int) -> None:
        self._over, self._total = over, total
        self._told = -EVERY

    def __call__(self, running: Sequence[Process]) -> None:
        now = time.monotonic()
        if running and now - self._told >= EVERY:
            self._told = now
            for number, process in enumerate(running, start=len(self._over) + 1):
                click.echo(f"[{number}/{self._total}] {process.progress()}")


def _again() -> str:
    """The command that was given, to type once more."""
    return shlex.join(["mir-task", *sys.argv[1:]])


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
        line += f", about {_time(sum(ran) / len(ran) * left / max(at_once, 1))} left"
    return f"{line}: {outcome.detail}"


def _time(seconds: float) -> str:
    """A time as a person says it.

    >>> _time(29), _time(100), _time(5000), _time(20000)
    ('29 s', '1 min 40 s', '83 min', '5.6 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 10000 else f"{seconds / 3600:.1f} h"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many runs ended how, and those that failed with the reason."""
    states = Counter(outcome.state for outcome in outcomes)
    lines = [", ".join(f"{number} {state}" for state, number in states.items())]
    for outcome in outcomes:
        if "failed" in outcome.state:
            lines.append(f"  {outcome.run.name}: {outcome.detail}")
    if states["failed before"]:
        lines.append("  run what failed before again with --retry_failed")
    return "\n".join(lines)
