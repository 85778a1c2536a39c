"""lmms-eval knows MIR: its request type, its tasks, and what stands in for one that cannot be loaded.

Importing this does what the entry point does, for tasks found by `--include_path` where that was not
read.
"""

from lmms_eval.api.model import lmms

from mir_task.harness.evaluation import install
from mir_task.harness.requests import mir_prefill
from mir_task.harness.task import FailedTask, MIRTask
from mir_task.plugin import failed_task, register

__all__ = ["MIRTask"]

lmms.mir_prefill = mir_prefill
failed_task[:] = [FailedTask]
install()
register()
