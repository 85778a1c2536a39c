"""Write `docs/keys.md`, the tables of all tasks and all keys: `python -m tools.task_keys`.

Keys, their values and defaults are those of `mir_task.settings`, the words about a key are its
docstring, and the tasks are the packaged YAML files with the comment at their head.
"""

import ast
import inspect
import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mir_task import settings, tasks

PAGE = Path(__file__).parents[1] / "docs" / "keys.md"
HEAD = """# All tasks and all keys

[Tasks](tasks.md) says how to run a task and how to write your own, [your own data](own_data.md) what the
keys of sources can name. This page is written from the package's YAML files and settings
(`python -m tools.task_keys`).
"""
SOURCES = ("media_dataset", "text_dataset")


def page() -> str:
    """The whole page."""
    measured = list(settings.MeasureSettings.model_fields)
    others = [name for name in settings.Settings.model_fields if name not in measured]
    return "\n".join(
        [
            HEAD,
            "## Keys of any task: what is measured\n",
            *keys(settings.MeasureSettings, measured),
            "\n`mir_base` names another MIR task, whose keys hold where the task has none of its own.",
            "`mir_task.measure` takes the keys of this table as arguments, without their `mir_`.\n",
            "## Keys of any task: which documents\n",
            *keys(settings.Settings, others),
            "\n## Tasks\n",
            *task_table(),
            "\n## Groups\n",
            "| group | holds |",
            "|---|---|",
            *(
                f"| `{name}` | {', '.join(f'`{task}`' for task in of)} |"
                for name, of in sorted(tasks.groups_in(tasks.TASK_CONFIGS).items())
            ),
            "",
        ]
    )


def keys(model: type[settings.MeasureSettings], names: list[str]) -> Iterator[str]:
    """Rows of a table of keys."""
    words = docstrings(settings.MeasureSettings) | docstrings(model)
    yield "| key | values | default | |"
    yield "|---|---|---|---|"
    for name in names:
        field = model.model_fields[name]
        yield f"| `mir_{name}` | {values(field.annotation)} | {default(field)} | {words[name]} |"


def docstrings(model: type[settings.MeasureSettings]) -> dict[str, str]:
    """What stands below each field of a class."""
    (definition,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            assert isinstance(below, ast.Expr), f"{field.target.id} has no docstring"
            text = ast.literal_eval(below.value)
            found[field.target.id] = " ".join(text.replace("docs/", "").split())
    return found


def values(annotation: Any) -> str:
    """What a key may be."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is tuple:
        return f"list of {values(arguments[0])}"
    if origin is types.UnionType or arguments:
        return " or ".join(values(of) for of in arguments if of is not type(None))
    names = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    return names.get(annotation, "mapping")


def default(field: FieldInfo) -> str:
    """What a key is where it is not given."""
    if field.default is PydanticUndefined and field.annotation is not str:
        return "needed"
    if field.default is PydanticUndefined or field.default is None:
        return "not given"
    return f"`{json.dumps(field.default).strip(chr(34))}`"


def task_table() -> Iterator[str]:
    """Rows of a table of tasks, with what each says at its head."""
    yield "| task | documents | images | texts | |"
    yield "|---|---:|---|---|---|"
    packaged = tasks.packaged_tasks()
    in_folders = {name: path.parent != tasks.TASK_CONFIGS for name, path in packaged.items()}
    for name in sorted(packaged, key=lambda name: (in_folders[name], by_number(name))):
        of = settings.Settings.of(name, tasks.mir_keys(tasks.read_task(packaged[name], packaged)))
        media, text = (first(getattr(of, key)) for key in SOURCES)
        how = "by id" if of.pairing == "by_id" else "unpaired"
        texts = f"its own `{of.text_column}`" if of.text_dataset is None else f"{text}, {how}"
        lines = packaged[name].read_text("utf-8").splitlines()
        comment = lines[0].removeprefix("# ") if lines[0].startswith("# ") else ""
        yield f"| `{name}` | {of.documents} | {media} | {texts} | {comment} |"


def by_number(name: str) -> list[tuple[int, str]]:
    """To sort names in the order of the numbers in them."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def first(source: str | tuple[str, ...] | None) -> str:
    """The first of the names of a data set."""
    name = source if isinstance(source, str) or source is None else source[0]
    return "" if name is None else f"`{name}`"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
