"""What can be chosen: operations, methods and merge rules, with their parameters and a sentence for each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["MERGES", "METHODS", "OPERATIONS", "Choice", "Parameter"]


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operation or of a method, as a control shows it.

    Attributes
    ----------
    kind : {"int", "float", "bool", "text", "choice", "function"}
        Of the control.
    default : object
        Where it is None, the parameter may be left to blockbuster.
    automatic : str
        What is shown then.
    low, high : float
        Of a number.
    values : tuple of (str, object)
        What can be chosen, with its words.
    """

    name: str
    kind: Literal["int", "float", "bool", "text", "choice", "function"]
    default: Any
    tip: str
    automatic: str = "automatic"
    low: float = 0
    high: float = 1e9
    values: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Choice:
    """One of several things to do, in a sentence, and its parameters."""

    title: str
    sentence: str
    parameters: tuple[Parameter, ...] = ()


_SIGMA = Parameter("sigma", "float", 0.0, "Standard deviation of a blur before, in voxels.", high=100)
_DISTANCE = Parameter(
    "min_distance", "int", 0, "Split what touches: voxels between two centres, at least. 0: do not split.", high=1000
)
_THRESHOLD = Parameter(
    "threshold", "float", 0.0, "What is above it is foreground, in the values of the image.", low=-1e9
)
_LEVEL_METHODS = (
    ("mean", "mean"),
    ("median", "median"),
    ("largest", "max"),
    ("smallest", "min"),
    ("most frequent", "mode"),
)

METHODS: dict[str, Choice] = {
    "otsu": Choice(
        "Otsu's threshold", "Connected parts above the threshold that Otsu's rule finds.", (_SIGMA, _DISTANCE)
    ),
    "threshold": Choice("Threshold", "Connected parts above a threshold.", (_THRESHOLD, _SIGMA, _DISTANCE)),
    "cellpose": Choice(
        "Cellpose",
        "Cells, by Cellpose 3 or 4, whichever is installed.",
        (
            Parameter("model", "text", "cyto3", "Name of a published model, or the file of one."),
            Parameter("diameter", "float", None, "Of the cells, in voxels.", "of the model", high=10_000),
            Parameter("do_3D", "bool", False, "Segment volumes; otherwise planes."),
            Parameter("gpu", "bool", False, "Compute on a GPU, one tile at a time."),
            Parameter(
                "flow_threshold", "float", 0.4, "How well flows must agree with a cell; larger keeps more.", high=10
            ),
            Parameter("cellprob_threshold", "float", 0.0, "Above it a voxel is one of a cell.", low=-10, high=10),
        ),
    ),
    "stardist": Choice(
        "StarDist",
        "Star-convex objects, such as nuclei, by StarDist.",
        (
            Parameter("model", "text", "2D_versatile_fluo", "Name of a published model, or the folder of one."),
            Parameter(
                "dim",
                "choice",
                2,
                "Whether it is a model for planes or for volumes.",
                values=(("planes", 2), ("volumes", 3)),
            ),
            Parameter("prob_thresh", "float", None, "How probable an object must be.", "of the model", high=1),
            Parameter("nms_thresh", "float", None, "How much two objects may overlap.", "of the model", high=1),
        ),
    ),
    "function": Choice(
        "Python function",
        "Any function of a numpy array that returns labels.",
        (
            Parameter("function", "function", "", "MODULE:NAME, such as mymodule:segment."),
            Parameter("arguments", "text", "", "Further arguments, such as sigma=2, split=True."),
        ),
    ),
}

OPERATIONS: dict[str, Choice] = {
    "segment": Choice("Segment", "Objects by a method, made whole across the borders of tiles."),
    "label": Choice(
        "Label",
        "Connected components, numbered as SciPy numbers those of the whole image.",
        (
            _THRESHOLD,
            Parameter("connectivity", "int", 1, "1: faces; up to the number of axes: corners too.", low=1, high=9),
        ),
    ),
    "blobs": Choice(
        "Find spots",
        "Bright spots of the whole image, as points.",
        (
            Parameter(
                "method",
                "choice",
                "log",
                "The detector of scikit-image.",
                values=(
                    ("Laplacian of Gaussian", "log"),
                    ("difference of Gaussians", "dog"),
                    ("determinant of Hessian", "doh"),
                ),
            ),
            Parameter("min_sigma", "float", 1.0, "The smallest standard deviation, in voxels.", low=0.1, high=1000),
            Parameter(
                "max_sigma", "float", 5.0, "The largest; what a tile reads around it grows with it.", low=0.1, high=1000
            ),
            Parameter("num_sigma", "int", 5, "How many there are from the smallest to the largest.", low=1, high=100),
            Parameter("threshold", "float", None, "What the response must exceed.", high=1e6),
            Parameter("overlap", "float", 0.5, "A spot that overlaps with a larger one by more is left out.", high=1),
        ),
    ),
    "downsample": Choice(
        "Downsample",
        "A smaller image: what the whole image gives.",
        (
            Parameter(
                "scale_factor", "int", 2, "Voxels of the image per voxel of the result, on each axis.", low=1, high=1024
            ),
            Parameter(
                "method",
                "choice",
                "mean",
                "How several voxels become one.",
                values=(*_LEVEL_METHODS, ("every n-th voxel", None)),
            ),
        ),
    ),
    "pyramid": Choice(
        "Pyramid",
        "The image as OME-Zarr with all its levels, which is fast to look at.",
        (
            Parameter("scale_factor", "int", 2, "From level to level, on each axis.", low=2, high=16),
            Parameter("method", "choice", "mean", "How several voxels become one.", values=_LEVEL_METHODS),
            Parameter("n_levels", "int", None, "Levels, the image itself counted.", "until one is small", high=32),
        ),
    ),
}

MERGES: dict[str, Choice] = {
    "iou": Choice(
        "drawn alike",
        "One object if both tiles drew it alike beside their border: for instance segmenters; needs an overlap.",
    ),
    "touching": Choice(
        "touching", "One object if labels touch across the border: for connected components; chains dense cells."
    ),
    "contact": Choice(
        "same contact", "One object if the two sides of the border fit each other: for tiles without an overlap."
    ),
    "none": Choice(
        "not merged", "Each tile keeps its own objects: what lies across a border is counted several times."
    ),
}
