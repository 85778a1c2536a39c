"""lmms-eval's side: the task class, its requests, its adapters, and what runs on a loaded adapter.

With `mir_task.plugin` the only importer of lmms-eval; may import everything but the commands. What runs
MIR by lm-evaluation-harness stands in `mir_task.harness.lm_eval` and imports none of lmms-eval, so
lmms-eval is imported with `MIRTask`, not with this package.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mir_task.harness.registration import MIRTask

__all__ = ["MIRTask"]


def __getattr__(name: str) -> object:
    if name != "MIRTask":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mir_task.harness.registration import MIRTask

    return MIRTask
