"""Segmenters by their names, for those who type or click: each a function of a tile, and how it is best merged."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from blockbuster.emptiness import estimate_empty_tiles
from blockbuster.errors import ParameterError
from blockbuster.percentiles import global_percentiles

__all__ = ["METHODS", "Method", "find_function", "make_method"]


@dataclass(frozen=True)
class Method:
    """A segmenter.

    Attributes
    ----------
    fn : callable
        For `tile_process`.
    merge : str
        The rule that suits its objects.
    overlap : int or None
        Voxels that it needs around a tile; None where that is not known.
    """

    fn: Callable[..., Any]
    merge: str
    overlap: int | None


def make_method(name: str, image: Any, parameters: Mapping[str, Any], **source: Any) -> Method:
    """The segmenter of a name.

    Parameters
    ----------
    name : {"threshold", "otsu", "cellpose", "stardist"} or str
        Or ``MODULE:NAME`` of a function of a tile.
    image : array_like or path
        The whole image, for what depends on it.
    parameters : mapping
        Of the segmenter; of a function, further arguments.
    **source
        `channel` and `level` of the image.

    Raises
    ------
    ParameterError
        If there is no such segmenter, or it has no such parameter.
    """
    if ":" in name:
        function = find_function(name)
        return Method(functools.partial(function, **parameters) if parameters else function, "touching", None)
    if name not in METHODS:
        raise ParameterError(
            f"method {name!r} is unknown. Choose one of {', '.join(map(repr, METHODS))}, or give MODULE:NAME of a "
            "function."
        )
    try:
        return METHODS[name](image, dict(parameters), source)
    except TypeError as error:
        raise ParameterError(
            f"method {name!r} cannot be made with the parameters {dict(parameters)}: {error}."
        ) from error


def find_function(words: str) -> Callable[..., Any]:
    """A function by the module that holds it and its name: ``MODULE:NAME``.

    Raises
    ------
    ParameterError
        If there is none.
    """
    module, is_given, name = words.partition(":")
    if not is_given or not module or not name:
        raise ParameterError(f"{words!r} is not MODULE:NAME")
    # As with `python -m`, modules of the working folder count.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ParameterError(f"{words!r} cannot be imported: {error}") from error
    if not callable(found):
        raise ParameterError(f"{words!r} is a {type(found).__name__}, which cannot be called")
    function: Callable[..., Any] = found
    return function


def _threshold(_image: Any, parameters: dict[str, Any], _source: Mapping[str, Any]) -> Method:
    from blockbuster.plugins.thresholding import threshold_fn

    made = threshold_fn(**parameters)
    # An object that is split is seen whole with an overlap of its size, which is a few times the distance of centres.
    if made.min_distance:
        return Method(made, "iou", max(made.reach, 4 * made.min_distance))
    return Method(made, "touching", made.reach)


def _otsu(image: Any, parameters: dict[str, Any], source: Mapping[str, Any]) -> Method:
    return _threshold(image, {"threshold": estimate_empty_tiles(image, **source).threshold, **parameters}, source)


def _cellpose(image: Any, parameters: dict[str, Any], source: Mapping[str, Any]) -> Method:
    from blockbuster.plugins.cellpose import DIAMETER, cellpose_fn

    made = cellpose_fn(**_normalized(image, parameters, source, 99))
    return Method(made, "iou", int(2 * (parameters.get("diameter") or DIAMETER)))


def _stardist(image: Any, parameters: dict[str, Any], source: Mapping[str, Any]) -> Method:
    from blockbuster.plugins.stardist import stardist_fn

    return Method(stardist_fn(**_normalized(image, parameters, source, 99.8)), "iou", None)


def _normalized(image: Any, parameters: dict[str, Any], source: Mapping[str, Any], high: float) -> dict[str, Any]:
    """Parameters with the percentiles of the whole image, so that tiles agree."""
    if "normalize" in parameters:
        return parameters
    ends = global_percentiles(image, [1, high], **source)
    return {**parameters, "normalize": tuple(np.asarray(ends).tolist())}


METHODS: dict[str, Callable[[Any, dict[str, Any], Mapping[str, Any]], Method]] = {
    "threshold": _threshold,
    "otsu": _otsu,
    "cellpose": _cellpose,
    "stardist": _stardist,
}
