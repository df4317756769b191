"""Stored arrays: read in the task whoever opened them, by fast codecs where these serve, and never written."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from zarrs.pipeline import ZarrsCodecPipeline

import blockbuster
from blockbuster.errors import OutputError
from blockbuster.stores import with_fast_codecs
from tests.helpers import components, digest


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "image.zarr"
    image = (np.random.default_rng(0).random((24, 24, 24)) < 0.3).astype(np.uint8)
    zarr.create_array(path, data=image, chunks=(8, 8, 8))
    return path


def tasks(array: da.Array) -> int:
    return len(dict(array.__dask_graph__()))


@pytest.mark.parametrize(
    "opened",
    [
        lambda path: da.from_zarr(str(path)),
        lambda path: da.from_zarr(zarr.open_array(path)),
        lambda path: da.from_array(zarr.open_array(path), chunks=(8, 8, 8)),
        lambda path: da.from_array(zarr.open_array(path), chunks=(8, 8, 8), inline_array=True),
    ],
    ids=["from_zarr path", "from_zarr array", "from_array", "inline"],
)
def test_a_dask_array_of_a_store_costs_what_the_store_costs(opened: Callable[[Path], da.Array], store: Path) -> None:
    by_path = blockbuster.tile_process(store, components, overlap=2)
    by_array = blockbuster.tile_process(opened(store), components, overlap=2)
    assert tasks(by_array) == tasks(by_path) <= 4 * 27
    np.testing.assert_array_equal(by_array.compute(), by_path.compute())


def test_chunks_that_dask_reads_in_are_the_tiles(store: Path) -> None:
    labels = blockbuster.label(da.from_zarr(str(store), chunks=(24, 7, 24)))
    assert labels.chunks == ((24,), (7, 7, 7, 3), (24,))


@pytest.mark.parametrize(
    "opened",
    [
        lambda path: da.from_zarr(str(path)),
        lambda path: da.from_zarr(str(path))[1:],
        lambda path: da.from_zarr(str(path)) + 1,
        lambda path: da.from_array(zarr.open_array(path)).rechunk((12, 24, 24)),
    ],
    ids=["as it is", "a view", "computed from", "rechunked"],
)
def test_what_a_dask_array_reads_is_never_replaced(opened: Callable[[Path], da.Array], store: Path) -> None:
    before = digest(store)
    with pytest.raises(OutputError, match="Inputs are never written"):
        blockbuster.label(opened(store), write_to=store, output_component="", overwrite=True)
    assert digest(store) == before


def test_the_mask_is_never_replaced(store: Path, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "mask.zarr", data=np.ones((24, 24, 24), np.uint8))
    with pytest.raises(OutputError, match="Inputs are never written"):
        blockbuster.label(
            store, mask=tmp_path / "mask.zarr", write_to=tmp_path / "mask.zarr", output_component="", overwrite=True
        )


def test_the_configuration_of_zarr_stays_the_users(store: Path, tmp_path: Path) -> None:
    before = zarr.config.get("codec_pipeline.path")
    seen: list[Any] = []

    def watching(block: Any) -> Any:
        seen.append((zarr.config.get("codec_pipeline.path"), type(zarr.open_array(store).async_array.codec_pipeline)))
        return components(block)

    blockbuster.tile_process(store, watching, write_to=tmp_path / "labels.zarr")
    assert {path for path, _ in seen} == {before} == {zarr.config.get("codec_pipeline.path")}
    assert ZarrsCodecPipeline not in {pipeline for _, pipeline in seen}


@pytest.mark.parametrize(
    ("options", "fast"),
    [
        ({"dtype": "<u2"}, True),
        ({"dtype": "<u2", "shards": (8, 8)}, True),
        ({"dtype": "<u2", "zarr_format": 2}, True),
        ({"dtype": ">u2", "zarr_format": 2}, False),
        ({"dtype": "<u2", "zarr_format": 2, "order": "F"}, False),
    ],
)
def test_fast_codecs_are_for_arrays_that_they_can_read(options: dict[str, Any], fast: bool, tmp_path: Path) -> None:
    values = np.arange(64).reshape(8, 8)
    written = zarr.create_array(tmp_path / "a.zarr", shape=(8, 8), chunks=(4, 4), **options)
    written[...] = values
    array = with_fast_codecs(zarr.open_array(tmp_path / "a.zarr", mode="r"))
    assert isinstance(array.async_array.codec_pipeline, ZarrsCodecPipeline) == fast
    np.testing.assert_array_equal(array[...], values)
    np.testing.assert_array_equal(array[1:7:3, 2], values[1:7:3, 2])


@pytest.mark.parametrize("opened", [str, zarr.open_array], ids=["path", "array"])
def test_named_axes_of_an_array_keep_time_apart(opened: Callable[[Path], Any], tmp_path: Path) -> None:
    still = np.ones((2, 4, 4), np.uint8)
    zarr.create_array(tmp_path / "i.zarr", data=still, chunks=(1, 4, 4), dimension_names=["t", "y", "x"])
    assert blockbuster.label(opened(tmp_path / "i.zarr"), compute=True).max() == 2


@pytest.fixture
def served(store: Path) -> Iterator[str]:
    """The URL of the folder of the store, on this machine only."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(store.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_image_is_read_from_a_url(served: str, store: Path, tmp_path: Path) -> None:
    by_url = blockbuster.label(f"{served}/image.zarr", write_to=tmp_path / "labels.zarr")
    np.testing.assert_array_equal(by_url.compute(), blockbuster.label(store, compute=True))


def test_a_file_url_is_a_path(store: Path) -> None:
    by_url = blockbuster.label(store.as_uri(), compute=True)
    np.testing.assert_array_equal(by_url, blockbuster.label(store, compute=True))
