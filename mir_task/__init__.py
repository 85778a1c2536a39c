"""MIR, the Modality Integration Rate (arXiv 2410.07167), as a plugin for lmms-eval.

`measure` computes it for a model and its processor, and `check` says what it would count; `from_states`
for hidden states that another engine wrote as `write_states` does; `MIRMeter` accumulates documents of
any loop one by one; `modality_integration_rate` computes it from hidden states that are at hand. These
names, with
`mir_task.callback.MIRCallback`, `mir_task.moca`, `mir_task.harness.MIRTask` and the command `mir-task`,
are what stays from version to version. Importing this package loads neither torch nor the harness.
"""

from importlib import import_module

from mir_task._version import __version__

TYPE_CHECKING = False  # each start of Python imports this package, and `typing` takes its time

if TYPE_CHECKING:
    from mir_task.errors import MIRError
    from mir_task.measuring.library import check, measure
    from mir_task.metric.definition import modality_integration_rate
    from mir_task.result import LayerResult, MIRResult
    from mir_task.states.measure import from_states
    from mir_task.states.write import DocumentStates, write_states
    from mir_task.statistics.meter import MIRMeter

__all__ = [
    "DocumentStates",
    "LayerResult",
    "MIRError",
    "MIRMeter",
    "MIRResult",
    "__version__",
    "check",
    "from_states",
    "measure",
    "modality_integration_rate",
    "write_states",
]

_MODULES = {
    "DocumentStates": "states.write",
    "LayerResult": "result",
    "MIRError": "errors",
    "MIRMeter": "statistics.meter",
    "MIRResult": "result",
    "check": "measuring.library",
    "from_states": "states.measure",
    "measure": "measuring.library",
    "modality_integration_rate": "metric.definition",
    "write_states": "states.write",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
