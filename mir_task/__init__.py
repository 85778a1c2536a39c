"""MIR, the Modality Integration Rate (arXiv 2410.07167), as a plugin for lmms-eval.

`modality_integration_rate` computes it from hidden states that are at hand; `MIRMeter`
accumulates documents one by one. Importing this package loads neither the harness nor transformers.
"""

from mir_task.errors import MIRError
from mir_task.meter import MIRMeter
from mir_task.metric import LayerResult, MIRResult, modality_integration_rate

__version__ = "0.1.0"

__all__ = [
    "LayerResult",
    "MIRError",
    "MIRMeter",
    "MIRResult",
    "__version__",
    "modality_integration_rate",
]
