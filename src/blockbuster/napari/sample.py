"""A real image to try the widget on."""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage import color, data

import blockbuster

__all__ = ["tissue_section"]

# Micrometers per voxel. That of the section is not published: its nuclei, of about 12 voxels, are taken for 6 um wide.
_SCALE = 0.5
_N_LEVELS = 2


def tissue_section() -> list[tuple[Any, dict[str, Any], str]]:
    """The two stains of a section of colon, each with two levels: layers for napari."""
    stains = color.rgb2hed(data.immunohistochemistry())
    looks = (("nuclei", 0, "gray"), ("DAB", 2, "I Orange"))
    return [(_levels(stains[..., channel]), _options(name, colormap), "image") for name, channel, colormap in looks]


def _levels(stain: Any) -> list[Any]:
    finest = np.clip(stain / np.percentile(stain, 99.8) * 255, 0, 255).astype(np.uint8)
    levels = [finest]
    for _ in range(_N_LEVELS - 1):
        levels.append(blockbuster.downsample(levels[-1], 2, method="mean", compute=True))
    return levels


def _options(name: str, colormap: str) -> dict[str, Any]:
    return {
        "name": name,
        "multiscale": True,
        "scale": (_SCALE, _SCALE),
        "units": ("micrometer", "micrometer"),
        "axis_labels": ("y", "x"),
        "colormap": colormap,
        "blending": "additive",
        "contrast_limits": (0, 255),
        "visible": name == "nuclei",
    }
