"""Small models with the structure of families whose code cannot be had from a package index.

They are registered as any adapter outside the harness is, by the entry point in `installed`, which
`tests.conftest` puts on the path.
"""

from typing import Any


def manifests() -> list[Any]:
    """Payload of the entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    from tests.standins.families import FAMILIES

    paths = {name: f"{family.__module__}.{family.__name__}" for name, family in FAMILIES.items()}
    paths["standin_hangs"] = "tests.standins.hangs.Hangs"
    return [ModelManifest(model_id=name, simple_class_path=path) for name, path in paths.items()]
