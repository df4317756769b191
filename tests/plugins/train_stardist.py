"""Train the small networks of the tests for StarDist: python -m tests.plugins.train_stardist FOLDER."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from stardist import Rays_GoldenSpiral
from stardist.models import Config2D, Config3D, StarDist2D, StarDist3D

from tests.plugins.discs import balls, discs

# Intensities that become 0 and 1.
LOW, HIGH = 0.0, 1100.0
Pair = tuple[NDArray[Any], NDArray[Any]]


def main(folder: str) -> None:
    """Train and save both."""
    tf.random.set_seed(0)
    np.random.seed(0)  # noqa: NPY002 - StarDist draws from it
    _fit(StarDist2D(_planes(), name="stardist2d", basedir=folder), [discs((128, 128), 12, seed=s) for s in range(20)])
    _fit(StarDist3D(_volumes(), name="stardist3d", basedir=folder), [_random_balls(seed) for seed in range(8)])


def _planes() -> Any:
    return Config2D(
        n_rays=16,
        grid=(2, 2),
        n_channel_in=1,
        unet_n_depth=2,
        unet_n_filter_base=8,
        net_conv_after_unet=16,
        train_patch_size=(96, 96),
        train_batch_size=4,
        train_epochs=60,
        train_steps_per_epoch=20,
        train_learning_rate=1e-3,
        train_tensorboard=False,
    )


def _volumes() -> Any:
    return Config3D(
        rays=Rays_GoldenSpiral(24),
        grid=(1, 2, 2),
        n_channel_in=1,
        backbone="unet",
        unet_n_depth=1,
        unet_n_filter_base=8,
        net_conv_after_unet=16,
        train_patch_size=(16, 48, 48),
        train_batch_size=2,
        train_epochs=15,
        train_steps_per_epoch=15,
        train_learning_rate=2e-3,
        train_tensorboard=False,
    )


def _random_balls(seed: int) -> Pair:
    rng = np.random.default_rng(seed)
    columns = [(y, x) for y in (16, 48) for x in (16, 48)]
    return balls((24, 64, 64), [(rng.uniform(8, 16), *column) for column in columns], rng.uniform(6, 8))


def _fit(model: Any, pairs: list[Pair]) -> None:
    images = [((image - LOW) / (HIGH - LOW)).astype(np.float32) for image, _ in pairs]
    labels = [truth.astype(np.int32) for _, truth in pairs]
    n = len(pairs) * 4 // 5
    model.train(images[:n], labels[:n], validation_data=(images[n:], labels[n:]), augmenter=None, workers=1)
    model.optimize_thresholds(images[n:], labels[n:], iou_threshs=[0.5], nms_threshs=[0.3, 0.4])


if __name__ == "__main__":
    main(*sys.argv[1:])
