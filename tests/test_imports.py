"""Which part of the package may import which, and what the light parts load."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mir_task

PACKAGE = Path(mir_task.__file__).parent
PLAIN = {"_version", "captions", "errors", "files", "progress", "result", "settings", "tasks"}
"""Modules of plain values at the top, which know no folder."""
ALLOWED = {
    "metric": {"errors", "result"},
    "statistics": {"metric", "errors", "result", "settings"},
    "capture": {"errors"},
    "documents": {"errors", "files", "settings"},
    "measuring": {
        *("capture", "documents", "metric", "statistics"),
        *("captions", "errors", "result", "settings"),
    },
    "states": {
        *("capture", "documents", "measuring", "reports"),
        *("errors", "files", "result", "settings"),
    },
    "reports": PLAIN,
    "harness": {
        *("capture", "documents", "measuring", "metric", "statistics", "reports"),
        *("moca", "plugin", *PLAIN),
    },
    "commands": {"harness", "reports", "documents", "demo", "states", *PLAIN},
    "demo": {"errors", "progress"},
    "callback": {"measuring", "captions", "errors", "result"},
    "moca": {"capture", "errors"},
    "plugin": {"errors", "tasks"},
    "startup": {"plugin"},
    **{name: PLAIN - {name} for name in PLAIN},
}
FORBIDDEN = {
    "lmms_eval": set(ALLOWED) - {"harness", "plugin"},
    "lm_eval": set(ALLOWED) - {"harness"},
    "torch": {"reports", "documents", "commands", "plugin", "startup", *PLAIN},
    "transformers": {"metric", "statistics", "reports", "documents", "measuring", *PLAIN},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parts(path: Path) -> tuple[str, Iterator[str]]:
    """The part that a file is in, and what it imports."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0], imports(path)


FILES = [
    path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.name[:2] != "__"
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_part_imports_what_it_may(path: Path) -> None:
    part, found = parts(path)
    for name in found:
        top, *rest = name.split(".")
        if top == "mir_task":
            assert rest[0] in ALLOWED[part] | {part}, name
        assert part not in FORBIDDEN.get(top, ()), name


def test_neither_harness_needs_the_other() -> None:
    """Nor what both use."""
    neutral = [PACKAGE / "harness" / name for name in ("__init__.py", "output.py", "scores.py")]
    for path in (*neutral, *(PACKAGE / "harness" / "lm_eval").glob("*.py")):
        assert not [name for name in imports(path) if name.startswith("lmms_eval")], path
    for path in (PACKAGE / "harness").glob("*.py"):
        assert not [name for name in imports(path) if name.startswith("lm_eval")], path


def test_no_circle() -> None:
    """Also between the modules of one folder."""
    modules = {
        ".".join(("mir_task", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in FILES
    }
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    arrows = {
        name: {
            target
            for found in imports(path)
            for target in (found, found.rpartition(".")[0])
            if target in modules and target != name
        }
        for name, path in modules.items()
    }
    while free := [name for name, targets in arrows.items() if not targets & arrows.keys()]:
        for name in free:
            del arrows[name]
    assert not arrows


def test_no_module_is_long_and_each_folder_says_what_it_is_for() -> None:
    assert [str(path) for path in FILES if len(path.read_text("utf-8").splitlines()) > 350] == []
    for folder in (path for path in PACKAGE.iterdir() if (path / "__init__.py").exists()):
        assert len(ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or "") > 60


@pytest.mark.parametrize(
    "code",
    [
        "import mir_task",
        "from mir_task import MIRError, MIRResult, LayerResult",
        "import mir_task.reports.compare, mir_task.reports.leaderboard, mir_task.reports.plot",
        "import mir_task.reports.report, mir_task.reports.robustness",
        "from mir_task.commands.cli import main",
    ],
)
def test_what_needs_no_torch_does_not_load_it(code: str) -> None:
    heavy = (
        "[name for name in ('torch', 'transformers', 'lmms_eval', 'datasets') if name in sys.modules]"
    )
    program = f"import sys; {code}; print({heavy})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("code", "other"),
    [
        ("from mir_task.harness import MIRTask", "lm_eval"),
        ("from mir_task.harness.lm_eval import MIRTask", "lmms_eval"),
    ],
)
def test_importing_one_harness_does_not_load_the_other(code: str, other: str) -> None:
    if other == "lmms_eval":
        pytest.importorskip("lm_eval")
    program = f"import sys; {code}; print({other!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")


def test_the_public_face() -> None:
    """What users' code and YAMLs name."""
    from mir_task import (
        DocumentStates,
        LayerResult,
        MIRError,
        MIRMeter,
        MIRResult,
        check,
        from_states,
        measure,
        moca,
        modality_integration_rate,
        write_states,
    )
    from mir_task.callback import MIRCallback
    from mir_task.harness import MIRTask

    public = (
        *(LayerResult, MIRError, MIRMeter, MIRResult, check, measure, modality_integration_rate),
        *(DocumentStates, from_states, write_states),
    )
    assert {each.__name__ for each in public} | {"__version__"} == set(mir_task.__all__)
    assert all(each.__doc__ for each in (*public, MIRCallback, MIRTask, moca.apply, moca.remove))
    assert re.fullmatch(r"\d+\.\d+\.\d+", mir_task.__version__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        mir_task.nothing  # noqa: B018
