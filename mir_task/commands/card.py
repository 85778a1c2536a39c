"""`mir-task card`: what was measured of a model, for its model card."""

from pathlib import Path

import click

from mir_task.commands.options import EITHER, NEW_FILE
from mir_task.commands.reports import runs_in


@click.command()
@click.argument("results", type=EITHER)
@click.option("--model", metavar="MODEL", help="Its name, where RESULTS has several models.")
@click.option(
    "--to",
    "readme",
    type=NEW_FILE,
    metavar="README.md",
    help="Model card to update, or to begin; printed if left out.",
)
def card(results: Path, model: str | None, readme: Path | None) -> None:
    """MIR and caption gain in RESULTS as metadata of a Hugging Face model card.

    RESULTS is a side file, <date>_mir_<task>.json, or a folder of them. The newest run of each task
    counts; what else a card says stays.
    """
    from mir_task.reports import card as cards
    from mir_task.reports.records import read_record

    records = [read_record(results)] if results.is_file() else runs_in([results]).records
    chosen = cards.of_one_model(records, model)
    new = [result for record in chosen for result in cards.results(record)]
    made = cards.updated(readme, Path(chosen[0].model.name).name, new)
    if readme is None:
        click.echo(f"---\n{made.data.to_yaml()}\n---")
        return
    cards.write(made, readme)
    click.echo(f"{readme}: {len(new)} results of {', '.join(record.task for record in chosen)}")
