"""Networks of Cellpose that are small enough to keep beside the tests: the real classes, narrow and shallow.

The library loads files of the published sizes only, so its classes are replaced before a file is made or loaded.
"""

from __future__ import annotations

import functools
import importlib.metadata
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

__all__ = ["MAJOR", "WEIGHTS", "OnSmallNetwork", "use_small_networks"]

MAJOR = int(importlib.metadata.version("cellpose").partition(".")[0])
WEIGHTS = Path(__file__).parent / "weights" / f"cellpose{MAJOR}.pt"
# What Cellpose 3 expects of each image, whatever the network.
_N_STYLES = 256


@dataclass(frozen=True)
class OnSmallNetwork:
    """A function that replaces the networks in whatever process calls it."""

    fn: Callable[[NDArray[Any]], NDArray[Any]]

    def __call__(self, tile: NDArray[Any]) -> NDArray[Any]:
        use_small_networks()
        return self.fn(tile)


@functools.cache
def use_small_networks() -> None:
    """Replace networks of the published sizes by small ones, and refuse downloads."""
    import torch
    from cellpose import utils

    torch.set_num_threads(1)
    utils.download_url_to_file = _refuse
    if MAJOR == 3:
        _narrow_unet()
    else:
        _narrow_transformer()


def _refuse(*what: Any, **_how: Any) -> None:
    raise AssertionError(f"something is downloaded: {what}")


def _narrow_unet() -> None:
    import torch
    from cellpose import models

    class SmallNetwork(models.CPnet):  # type: ignore[misc]
        def __init__(self, nbase: list[int], *args: Any, **kwargs: Any) -> None:
            # Called again with what it made of it when a file is loaded.
            super().__init__([nbase[0], *(min(n, 8 * 2**k) for k, n in enumerate(nbase[1:]))], *args, **kwargs)

        def forward(self, image: Any) -> tuple[Any, Any, Any]:
            flows, styles, features = super().forward(image)
            return flows, torch.nn.functional.pad(styles, (0, _N_STYLES - styles.shape[1])), features

    models.CPnet = SmallNetwork


def _narrow_transformer() -> None:
    import torch
    from segment_anything import sam_model_registry
    from segment_anything.modeling import ImageEncoderViT

    def narrow(checkpoint: None = None) -> types.SimpleNamespace:
        encoder = ImageEncoderViT(
            depth=2,
            embed_dim=48,
            global_attn_indexes=[0, 1],
            img_size=1024,
            mlp_ratio=4,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=4,
            out_chans=32,
            patch_size=16,
            qkv_bias=True,
            use_rel_pos=True,
            window_size=14,
        )
        return types.SimpleNamespace(image_encoder=encoder)

    sam_model_registry["vit_l"] = narrow
