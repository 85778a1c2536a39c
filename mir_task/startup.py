"""Registration as soon as the harness's tasks are imported, whichever of its commands does so.

`mir_task.pth` has every start of Python import this module, so it imports next to nothing. What it does
is done once, by the import of `lmms_eval.tasks`, and never makes that import fail.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder

_TASKS = "lmms_eval.tasks"


class _AfterTasks:
    """Finder of one module that has `mir_task.plugin` register once the module is there."""

    @staticmethod
    def find_spec(name, path=None, target=None):  # type: ignore[no-untyped-def]
        if name != _TASKS:
            return None
        sys.meta_path.remove(_AfterTasks)
        spec: ModuleSpec | None = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module):  # type: ignore[no-untyped-def]
            execute(module)
            try:
                from mir_task.plugin import register

                register()
            except Exception as error:  # noqa: BLE001 - the harness's own tasks go on
                sys.stderr.write(f"mir_task: the MIR tasks are not registered: {error!r}\n")

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _TASKS not in sys.modules and _AfterTasks not in sys.meta_path:
    sys.meta_path.insert(0, _AfterTasks)
