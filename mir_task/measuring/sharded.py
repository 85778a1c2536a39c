"""Models whose parameters are sharded over processes, which all take part whenever one gathers them.

A forward of such a model gathers the parameters of one module after the other, and waits until every
process gathers the same. Documents that cannot be measured, and adapters that run more forwards for one
document than for another, would have a process wait for ever. So before each module the processes agree
on which one comes next, and those that do not run it themselves gather its parameters too.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mir_task.errors import MIRError
from mir_task.measuring.processes import all_gather, tell_failure, world_size


class _Module(NamedTuple):
    """A module that FSDP2 shards."""

    module: Any
    depth: int
    """Number of sharded modules around it."""
    parameters: list[tuple[nn.Module, str]]
    """Its parameters but those of sharded modules inside it: whose they are, and their names."""

    @property
    def is_gathered(self) -> bool:
        """Whether this process has the parameters whole."""
        return not any(_shards(getattr(module, name)) for module, name in self.parameters)


class _Announcement(NamedTuple):
    """What one process says to the others before each module."""

    next: int | None
    """Number of the module that it is about to run; None where it has none left to run."""
    is_gathered: bool
    """Whether it has that module's parameters whole."""
    gathered: frozenset[int]
    """Numbers of all modules that it has gathered for itself."""


def refuse_unknown_sharding(model: nn.Module) -> None:
    """Raise MIRError for a model that is split over processes in another way than by FSDP2."""
    way = None
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        way = "FullyShardedDataParallel, which flattens them"
    elif any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        way = "DeepSpeed's ZeRO stage 3"
    if way is not None:
        raise MIRError(
            f"the parameters of {type(model).__name__} are sharded by {way}: MIR is measured under "
            "FSDP2 (fully_shard; fsdp_version: 2 of accelerate), DistributedDataParallel or ZeRO stages "
            "1 and 2, and on a saved checkpoint"
        )
    mesh: Any = getattr(model, "_device_mesh", None)
    names = getattr(mesh, "mesh_dim_names", None) or ()
    split = [name for name in names if name in ("tp", "pp", "ep") and mesh[name].size() > 1]
    sharded_by_fsdp = {id(p) for each in _sharded_modules(model) for p in each.module.parameters()}
    if any(_shards(p) > int(id(p) in sharded_by_fsdp) for p in model.parameters()) or (
        (getattr(model, "_tp_size", None) or 1) > 1
    ):
        split = split or ["tp"]
    if split:
        ways = {"tp": "tensor", "pp": "pipeline", "ep": "expert"}
        raise MIRError(
            f"{type(model).__name__} is split over processes by {ways[split[0]]} parallelism, so they "
            "would all have to run the same documents: load it whole in each process, or over the "
            "devices of one process (device_map='auto')"
        )


@contextlib.contextmanager
def in_step(models: Iterable[nn.Module]) -> Iterator[None]:
    """Have the processes gather the parameters of sharded models alike, whatever each of them runs.

    All processes enter, and leave once none of them has a module left to run. Without sharded
    parameters, or with one process, it does nothing.
    """
    modules = [module for model in models for module in _sharded_modules(model)]
    if not modules or world_size() == 1:
        yield
        return
    steps = _Steps(modules)
    with contextlib.ExitStack() as stack:
        for number, (module, _, _) in enumerate(modules):
            hook = functools.partial(steps.before_forward, number)
            stack.callback(module.register_forward_pre_hook(hook, prepend=True).remove)
            if hasattr(module, "generate"):
                stack.enter_context(_generating_in_step(module, steps, number))
        try:
            yield
        except Exception:
            tell_failure()  # now, since the others run on until they know
            steps.finish()
            raise
        steps.finish()


class _Steps:
    """The modules that all processes together run, one after the other."""

    def __init__(self, modules: list[_Module]) -> None:
        self._modules = modules
        self._for_others: set[int] = set()
        """Modules that were gathered here since other processes ran them, and are so there too."""

    def before_forward(self, number: int, *arguments: Any) -> None:
        """Wait until a module is the next one; its forward hook of FSDP2 then gathers it."""
        while self._next(number) != number:
            pass

    def finish(self) -> None:
        """Gather what the others run, until all have finished."""
        while self._next(None) is not None:
            pass

    def _next(self, own: int | None) -> int | None:
        """The number of the module that is next, gathered where it is not this process's own."""
        gathered = {number for number, module in enumerate(self._modules) if module.is_gathered}
        announcement = _Announcement(own, own in gathered, frozenset(gathered - self._for_others))
        announced = all_gather(announcement)
        for number in self._for_others.difference(*(each.gathered for each in announced)):
            self._modules[number].module.reshard()
            self._for_others.remove(number)
        wanted = [(each.next, each.is_gathered) for each in announced if each.next is not None]
        if not wanted:
            return None
        # A module within others goes before them: where it is next, they are in use.
        number, _ = max(wanted, key=lambda each: (self._modules[each[0]].depth, each[1]))
        module = self._modules[number].module
        is_collective = (number, False) in wanted
        if is_collective and self._modules[number].is_gathered:
            module.reshard()  # to gather it with the others
        if number == own:
            self._for_others.discard(number)
        elif is_collective:
            module.unshard()
            self._for_others.add(number)
        return number


@contextlib.contextmanager
def _generating_in_step(module: Any, steps: _Steps, number: int) -> Iterator[None]:
    """Have `generate` wait for no other process by itself."""
    own, generate = vars(module).get("generate"), module.generate
    takes_synced = "synced_gpus" in inspect.signature(type(module).generate).parameters

    def in_step_with_others(*args: Any, **kwargs: Any) -> Any:
        # Registered as a forward method of FSDP2's, it gathers the module before its forward does.
        steps.before_forward(number)
        module.unshard()
        return generate(*args, **kwargs, **({"synced_gpus": False} if takes_synced else {}))

    module.__dict__["generate"] = in_step_with_others
    try:
        yield
    finally:
        del module.__dict__["generate"]
        if own is not None:
            module.__dict__["generate"] = own


def _sharded_modules(model: nn.Module) -> list[_Module]:
    """The modules that FSDP2 shards, outer ones first."""
    found: list[_Module] = []
    seen: set[nn.Module] = set()

    def visit(module: nn.Module, depth: int, around: _Module | None) -> None:
        if module in seen:
            return
        seen.add(module)
        if hasattr(module, "unshard") and hasattr(module, "reshard"):
            around = _Module(module, depth, [])
            found.append(around)
            depth += 1
        if around is not None:
            around.parameters.extend(
                (module, name) for name, p in module._parameters.items() if p is not None
            )
        for child in module.children():
            visit(child, depth, around)

    visit(model, 0, None)
    return found


def _shards(parameter: Any) -> int:
    """Dimensions of its mesh over which a parameter is sharded; 0 for one that is whole."""
    return sum("Shard" in type(placement).__name__ for placement in getattr(parameter, "placements", ()))
