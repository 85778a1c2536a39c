"""lm-evaluation-harness's side: its task class, its request, its adapter `hf-multimodal`.

Thin: prompts are the adapter's own, everything else is what the other harness's side uses. Imports
lm_eval, and nothing of lmms-eval.
"""

from lm_eval.api.model import LM

from mir_task.harness.lm_eval.requests import mir_prefill
from mir_task.harness.lm_eval.task import MIRTask

__all__ = ["MIRTask"]

LM.mir_prefill = mir_prefill
