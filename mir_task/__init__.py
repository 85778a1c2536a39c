"""MIR, the Modality Integration Rate (arXiv 2410.07167), as a plugin for lmms-eval.

`measure` computes it for a model and its processor; `MIRMeter` accumulates documents of any loop one
by one; `modality_integration_rate` computes it from hidden states that are at hand. Importing this
package loads neither the harness nor transformers.
"""

from mir_task.errors import MIRError
from mir_task.library import measure
from mir_task.metric import modality_integration_rate
from mir_task.result import LayerResult, MIRResult
from mir_task.statistics.meter import MIRMeter

__version__ = "0.1.0"

__all__ = [
    "LayerResult",
    "MIRError",
    "MIRMeter",
    "MIRResult",
    "__version__",
    "measure",
    "modality_integration_rate",
]
