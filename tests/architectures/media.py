"""What encoders of images and audio receive: random tensors in the shapes that processors give."""

from typing import Any

import torch

from tests.architectures import Call, Media


def pixels(*shape: int, name: str = "pixel_values", **more: Any) -> Media:
    """Pixels of one image [1, 3, 56, 56], or of another shape.

    Args:
        shape: of the pixels.
        name: of the argument.
        more: further arguments, as lists.
    """

    def make(config: Any, generator: torch.Generator) -> Call:
        image = torch.randn(shape or (1, 3, 56, 56), generator=generator)
        return {name: image, **{key: torch.tensor(value) for key, value in more.items()}}

    return make


def nothing(config: Any, generator: torch.Generator) -> Call:
    """No medium."""
    return {}


def patches(*grid: int, width: int | None = None, **more: Any) -> Media:
    """Flat patches of one image, and their grid [1, 3] of time, height and width.

    Args:
        grid: 1, 4, 4 if none.
        width: numbers of a patch, by the vision configuration where None.
        more: further arguments, as lists.
    """
    thw = grid or (1, 4, 4)

    def make(config: Any, generator: torch.Generator) -> Call:
        vision = getattr(config, "thinker_config", config).vision_config
        channels = getattr(vision, "in_channels", getattr(vision, "num_channels", 3))
        deep = getattr(vision, "temporal_patch_size", 1)
        numbers = width or channels * deep * vision.patch_size**2
        count = thw[0] * thw[1] * thw[2]
        return {
            "pixel_values": torch.randn(count, numbers, generator=generator),
            "image_grid_thw": torch.tensor([thw]),
            **{key: torch.tensor(value) for key, value in more.items()},
        }

    return make
