"""Train the small network of the Cellpose that is installed: python -m tests.plugins.train_cellpose FILE."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np
import torch
from cellpose import models, train

from tests.plugins.discs import discs
from tests.plugins.networks import MAJOR, use_small_networks

N_IMAGES = 16


def main(path: str) -> None:
    """Train and save."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - Cellpose draws from it
    use_small_networks()
    shape, n_discs, network, options = _unet() if MAJOR == 3 else _transformer()
    images, labels = zip(*(discs(shape, n_discs, seed=seed) for seed in range(N_IMAGES)), strict=True)
    with tempfile.TemporaryDirectory() as folder:
        train.train_seg(
            network,
            train_data=list(images),
            train_labels=list(labels),
            normalize=True,
            nimg_per_epoch=N_IMAGES,
            min_train_masks=1,
            save_path=folder,
            model_name="small",
            **options,
        )
    network.save_model(path)


def _unet() -> tuple[tuple[int, int], int, Any, dict[str, Any]]:
    network = models.CPnet([2, 8, 16, 32, 64], 3, sz=3, mkldnn=False, diam_mean=30.0)
    rates = {"n_epochs": 100, "learning_rate": 0.005, "weight_decay": 1e-5, "batch_size": 8}
    return (192, 192), 25, network, {"channels": [0, 0], "bsize": 112, **rates}


def _transformer() -> tuple[tuple[int, int], int, Any, dict[str, Any]]:
    from cellpose.vit import CPSAM

    network = CPSAM(dtype=torch.float32, rdrop=0.0)
    torch.nn.init.normal_(network.encoder.pos_embed, std=0.02)
    rates = {"n_epochs": 45, "learning_rate": 2e-3, "weight_decay": 0.0, "batch_size": 4}
    return (256, 256), 40, network, {"rescale": True, **rates}


if __name__ == "__main__":
    main(sys.argv[1])
