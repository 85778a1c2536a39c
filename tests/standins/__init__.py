"""Small models with the structure of families whose code cannot be had from a package index.

They are registered as any adapter outside the harness is, by the entry point in `installed`, which
`tests.conftest` puts on the path.
"""

from typing import Any


def manifests() -> list[Any]:
    """Payload of the entry point."""
    from lmms_eval.models.registry_v2 import ModelManifest

    from tests.standins.families import FAMILIES

    return [
        ModelManifest(model_id=name, simple_class_path=f"{family.__module__}.{family.__name__}")
        for name, family in FAMILIES.items()
    ]
