"""Images at URLs: read from a server on this machine, each chunk once, and clear where that fails."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import scipy.ndimage
import tifffile
import zarr
from numpy.typing import NDArray
from zarr.errors import ZarrUserWarning

import blockbuster
from blockbuster import ImageError, OutputError, ParameterError, ResumeError, TileError, load_ome_zarr, open_image
from tests.helpers import assert_same_objects, components, digest, leftovers, write_ome_zarr

METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass
class Served:
    """A folder on a server, and what was asked for.

    Attributes
    ----------
    url : str
        Of the folder.
    gets : list of str
        Paths within the folder, as they were asked for.
    answers : dict of int
        Statuses to answer with in place of a file whose path ends so.
    cut : set of str
        Ends of paths of files of which the first half is sent only.
    """

    folder: Path
    listing: bool
    url: str = ""
    gets: list[str] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)

    @property
    def chunks(self) -> list[str]:
        """The chunks that were asked for, sorted."""
        files = [path for path in self.gets if path.rpartition("/")[2] not in METADATA]
        return sorted(path for path in files if not Path(self.folder, path).is_dir())


class Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, served: Served) -> None:
        self.served = served
        super().__init__(*args, directory=str(served.folder))

    def do_GET(self) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).strip("/")
        self.served.gets.append(path)
        for end, status in self.served.answers.items():
            if path.endswith(end):
                self.send_error(status)
                return
        file = self.served.folder / path
        wanted = self.headers.get("Range")
        if any(path.endswith(end) for end in self.served.cut):
            content = file.read_bytes()
            self._send(200, content[: len(content) // 2], len(content))
            self.close_connection = True
        elif wanted and file.is_file():
            content = file.read_bytes()
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = (int(first), int(last or len(content) - 1) + 1) if first else (-int(last), None)
            part = content[start:stop]
            self._send(206, part, len(part))
        else:
            super().do_GET()

    def _send(self, status: int, content: bytes, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def list_directory(self, path: Any) -> Any:
        if self.served.listing:
            return super().list_directory(path)
        self.send_error(404)
        return None

    def log_message(self, *_args: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Serve a folder while the test runs; by default without listing what is in it."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def start(folder: Path, *, listing: bool = False) -> Served:
        served = Served(folder, listing)
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, served=served))
        server.daemon_threads = True
        server.handle_error = lambda *_args: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        served.url = f"http://127.0.0.1:{server.server_port}"
        return served

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def values() -> NDArray[np.uint8]:
    return (np.random.default_rng(3).random((2, 20, 30)) < 0.4).astype(np.uint8)


@pytest.fixture(params=["0.4", "0.5"])
def version(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "web"
    made.mkdir()
    return made


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, values: NDArray[np.uint8]) -> Callable[[str, bool], Path]:
    """OME-Zarr images with two channels, two levels and two label images, each written once; not to be changed."""

    @functools.cache
    def write(version: Any, consolidated: bool) -> Path:
        made = tmp_path_factory.mktemp("web") / "i.zarr"
        levels = [values, values[:, ::2, ::2]]
        write_ome_zarr(made, levels, "cyx", version=version, channels=["DAPI", "GFP"], chunks=(1, 8, 16))
        for number, name in enumerate(("nuclei", "cells"), 2):
            blockbuster.write_labels(np.full((20, 30), number, np.int32), made, name, n_levels=2)
        if consolidated:
            consolidate(made)
        return made

    return write


@pytest.fixture
def image(images: Callable[[str, bool], Path], version: Any) -> Path:
    return images(version, False)


@pytest.fixture(params=[False, True], ids=["", "consolidated"])
def consolidated(request: pytest.FixtureRequest, images: Callable[[str, bool], Path], version: Any) -> Path:
    """The image with its metadata consolidated, or not."""
    return images(version, request.param)


@pytest.fixture(params=[False, True], ids=["not listed", "listed"])
def listing(request: pytest.FixtureRequest) -> bool:
    made: bool = request.param
    return made


def consolidate(path: Path) -> None:
    with warnings.catch_warnings(category=ZarrUserWarning, action="ignore"):
        zarr.consolidate_metadata(path)


# Reading


def test_an_image_is_opened_from_a_url(
    consolidated: Path, listing: bool, values: NDArray[Any], version: Any, serve: Serve
) -> None:
    served = serve(consolidated.parent, listing=listing)
    opened = open_image(f"{served.url}/i.zarr")
    assert served.chunks == []
    assert (opened.path, opened.axes, opened.version) == (f"{served.url}/i.zarr", "cyx", version)
    assert (opened.labels, opened.channel_names) == (("nuclei", "cells"), ("DAPI", "GFP"))
    assert opened.scales == ((1.0, 1.0, 1.0), (2.0, 2.0, 2.0))
    for level, expected in zip(opened.levels, [values, values[:, ::2, ::2]], strict=True):
        np.testing.assert_array_equal(level.compute(), expected)


def test_a_channel_and_a_level_are_loaded_from_a_url(image: Path, values: NDArray[Any], serve: Serve) -> None:
    served = serve(image.parent)
    lazy = load_ome_zarr(f"{served.url}/i.zarr", channel="GFP", level=1)
    assert served.chunks == []
    np.testing.assert_array_equal(lazy.compute(), values[1, ::2, ::2])
    # The other channel and level were not asked for.
    assert len(served.chunks) == 2 * 1
    assert len(set(served.chunks)) == 2
    with pytest.raises(ImageError, match=r"channel 'RFP' was asked for, but http.*i\.zarr has channels.*DAPI"):
        load_ome_zarr(f"{served.url}/i.zarr", channel="RFP")
    with pytest.raises(ImageError, match=r"level 2 was asked for, but http.*i\.zarr has levels 0\.\.1"):
        load_ome_zarr(f"{served.url}/i.zarr", level=2)


@pytest.mark.parametrize("end", ["/", "//"])
def test_urls_may_end_with_a_slash(end: str, image: Path, values: NDArray[Any], serve: Serve) -> None:
    served = serve(image.parent)
    opened = open_image(f"{served.url}/i.zarr{end}")
    np.testing.assert_array_equal(opened.data.compute(), values)
    assert opened.labels == ("nuclei", "cells")


def test_labels_are_opened_by_their_url(consolidated: Path, version: Any, serve: Serve) -> None:
    served = serve(consolidated.parent)
    labels = open_image(f"{served.url}/i.zarr/labels/cells")
    assert (labels.axes, labels.version, labels.name) == ("yx", version, "cells")
    assert (labels.data.compute() == 3).all()
    assert (load_ome_zarr(f"{served.url}/i.zarr/labels/nuclei", level=1).compute() == 2).all()
    with pytest.raises(ImageError, match=r"labels is a group of the labels nuclei, cells"):
        open_image(f"{served.url}/i.zarr/labels")


def test_an_array_is_opened_by_its_url(folder: Path, serve: Serve) -> None:
    zarr.create_array(folder / "a.zarr", data=np.eye(9), chunks=(4, 4), dimension_names=["y", "x"])
    zarr.create_array(folder / "sharded.zarr", data=np.eye(16), chunks=(2, 2), shards=(8, 8))
    zarr.create_array(folder / "old.zarr", data=np.eye(9, dtype=">f4"), chunks=(4, 4), zarr_format=2, order="F")
    served = serve(folder)
    assert open_image(f"{served.url}/a.zarr").axes == "yx"
    for name, n in (("a", 9), ("sharded", 16), ("old", 9)):
        np.testing.assert_array_equal(open_image(f"{served.url}/{name}.zarr").data.compute(), np.eye(n))


@pytest.fixture
def plate(folder: Path, version: Any) -> Path:
    """A plate with two fields in well A/1, one in A/2."""

    def node(path: Path, **words: Any) -> None:
        attributes = words if version == "0.4" else {"ome": {"version": version, **words}}
        zarr.create_group(path, zarr_format=2 if version == "0.4" else 3, attributes=attributes)

    made = folder / "p.zarr"
    node(made, plate={"wells": [{"path": "A/1"}, {"path": "A/2"}]})
    node(made / "A")
    for well, fields in (("A/1", 2), ("A/2", 1)):
        node(made / well, well={"images": [{"path": str(f)} for f in range(fields)]})
        for number in range(fields):
            write_ome_zarr(made / well / str(number), [np.full((3, 4), number + 1)], "yx", version=version)
    return made


def test_fields_of_a_plate_are_opened_by_their_url(plate: Path, serve: Serve) -> None:
    served = serve(plate.parent)
    assert (open_image(f"{served.url}/p.zarr/A/1/1").data.compute() == 2).all()
    assert open_image(f"{served.url}/p.zarr/A/2").path == f"{served.url}/p.zarr/A/2/0"
    with pytest.raises(ImageError, match=r"p\.zarr is a plate.*p\.zarr/<well>/<field>: A/1, A/2"):
        open_image(f"{served.url}/p.zarr")
    with pytest.raises(ImageError, match=r"p\.zarr/A/1 is a well with the fields 0, 1"):
        open_image(f"{served.url}/p.zarr/A/1")


def test_a_plate_is_copied_whole(plate: Path, tmp_path: Path, serve: Serve) -> None:
    served = serve(plate.parent)
    blockbuster.copy(f"{served.url}/p.zarr", tmp_path / "copy.zarr")
    for name, value in (("A/1/0", 1), ("A/1/1", 2), ("A/2/0", 1)):
        assert (open_image(tmp_path / "copy.zarr" / name).data.compute() == value).all()
    with pytest.raises(ImageError, match="A/1, A/2"):
        open_image(tmp_path / "copy.zarr")
    assert zarr.open_group(tmp_path / "copy.zarr" / "A", mode="r")


def test_the_only_array_of_a_group_is_taken_where_that_can_be_known(folder: Path, listing: bool, serve: Serve) -> None:
    zarr.create_group(folder / "g.zarr").create_array("em", data=np.eye(4))
    zarr.create_group(folder / "c.zarr").create_array("em", data=np.eye(4))
    consolidate(folder / "c.zarr")
    served = serve(folder, listing=listing)
    np.testing.assert_array_equal(open_image(f"{served.url}/c.zarr").data.compute(), np.eye(4))
    if listing:
        np.testing.assert_array_equal(open_image(f"{served.url}/g.zarr").data.compute(), np.eye(4))
    else:
        with pytest.raises(ImageError, match=r"g\.zarr is a zarr group without OME-Zarr metadata"):
            open_image(f"{served.url}/g.zarr")


def test_unusual_letters_in_urls_are_taken(folder: Path, serve: Serve) -> None:
    write_ome_zarr(folder / "my image.zarr", [np.eye(4)], "yx")
    served = serve(folder)
    np.testing.assert_array_equal(open_image(f"{served.url}/my%20image.zarr").data.compute(), np.eye(4))


# Operations


def test_urls_are_labelled_and_copied_on_every_scheduler(
    many: str, folder: Path, values: NDArray[Any], tmp_path: Path, serve: Serve
) -> None:
    write_ome_zarr(folder / "i.zarr", [values], "cyx", chunks=(1, 8, 16))
    served = serve(folder)
    out = tmp_path / "out"
    out.mkdir()
    labels = blockbuster.label(f"{served.url}/i.zarr", channel=1, write_to=out / "labels.zarr")
    np.testing.assert_array_equal(labels.compute(), scipy.ndimage.label(values[1])[0])
    by_array = blockbuster.tile_process(load_ome_zarr(f"{served.url}/i.zarr"), components, overlap=2, compute=True)
    assert_same_objects(by_array, scipy.ndimage.label(values[0])[0])
    copied = blockbuster.copy(f"{served.url}/i.zarr/0", out / "copy.zarr", chunks=(2, 7, 9))
    np.testing.assert_array_equal(copied.compute(), values)
    assert leftovers(out) == []


def test_an_array_is_copied_by_one_request_for_each_chunk(folder: Path, tmp_path: Path, serve: Serve) -> None:
    stack = np.random.default_rng(0).integers(1, 255, (3, 40, 50)).astype(np.uint8)
    zarr.create_array(folder / "a.zarr", data=stack, chunks=(1, 16, 16))
    served = serve(folder)
    copied = blockbuster.copy(f"{served.url}/a.zarr", tmp_path / "copy.zarr")
    expected = sorted(f"a.zarr/c/{z}/{y}/{x}" for z in range(3) for y in range(3) for x in range(4))
    assert served.chunks == expected
    assert copied.chunks == ((1, 1, 1), (16, 16, 8), (16, 16, 16, 2))
    np.testing.assert_array_equal(copied.compute(), stack)
    # What the copy is read from is the copy.
    assert served.chunks == expected


@pytest.mark.parametrize("chunks", [(3, 40, 50), (2, 20, 25), (1, 8, 8)])
@pytest.mark.parametrize("given", ["url", "lazy array"])
def test_an_array_is_copied_to_other_chunks_by_one_request_for_each(
    chunks: Any, given: str, folder: Path, tmp_path: Path, serve: Serve
) -> None:
    stack = np.random.default_rng(0).integers(1, 255, (3, 40, 50)).astype(np.uint8)
    zarr.create_array(folder / "a.zarr", data=stack, chunks=(1, 16, 16))
    served = serve(folder)
    url = f"{served.url}/a.zarr"
    copied = blockbuster.copy(url if given == "url" else open_image(url).data, tmp_path / "copy.zarr", chunks=chunks)
    np.testing.assert_array_equal(copied.compute(), stack)
    assert served.chunks == sorted(f"a.zarr/c/{z}/{y}/{x}" for z in range(3) for y in range(3) for x in range(4))


def test_chunks_that_are_not_stored_are_the_fill_value(folder: Path, tmp_path: Path, serve: Serve) -> None:
    array = zarr.create_array(folder / "a.zarr", shape=(20, 20), dtype="u2", chunks=(8, 8), fill_value=7)
    array[8:16, 8:16] = 1
    served = serve(folder)
    copied = blockbuster.copy(f"{served.url}/a.zarr", tmp_path / "copy.zarr")
    np.testing.assert_array_equal(copied.compute(), array[...])
    np.testing.assert_array_equal(load_ome_zarr(f"{served.url}/a.zarr").compute(), array[...])


def test_an_image_is_copied_whole(
    consolidated: Path, values: NDArray[Any], version: Any, tmp_path: Path, serve: Serve
) -> None:
    # A server that lists folders is asked for one version, others for the other.
    served = serve(consolidated.parent, listing=version == "0.4")
    blockbuster.copy(f"{served.url}/i.zarr", tmp_path / "copy.zarr")
    asked = served.chunks
    copied, original = open_image(tmp_path / "copy.zarr"), open_image(consolidated)
    assert (copied.axes, copied.version, copied.labels) == ("cyx", version, ("nuclei", "cells"))
    assert (copied.scales, copied.channel_names) == (original.scales, ("DAPI", "GFP"))
    for level, expected in zip(copied.levels, [values, values[:, ::2, ::2]], strict=True):
        np.testing.assert_array_equal(level.compute(), expected)
    for name, number in (("nuclei", 2), ("cells", 3)):
        labels = open_image(tmp_path / "copy.zarr" / "labels" / name)
        assert len(labels.levels) == 2
        assert all((level.compute() == number).all() for level in labels.levels)
    # Each chunk was asked for once; which they are, the copy tells.
    there = [str(p.relative_to(consolidated.parent)) for p in consolidated.rglob("*") if p.is_file()]
    stored = [name for name in there if name.rpartition("/")[2] not in METADATA]
    assert len(asked) == len(set(asked))
    assert set(stored) <= set(asked)


def test_one_level_and_one_channel_of_a_url_are_copied(
    image: Path, values: NDArray[Any], tmp_path: Path, serve: Serve
) -> None:
    served = serve(image.parent)
    copied = blockbuster.copy(f"{served.url}/i.zarr", tmp_path / "copy.zarr", level=1, channel="GFP")
    np.testing.assert_array_equal(copied.compute(), values[1, ::2, ::2])
    made = blockbuster.write_image(f"{served.url}/i.zarr", tmp_path / "image.zarr", n_levels=1)
    np.testing.assert_array_equal(made.data.compute(), values)
    assert (made.axes, made.channel_names) == ("cyx", ("DAPI", "GFP"))


@pytest.mark.parametrize("kind", ["plain", "collection"])
def test_a_group_is_copied_whole_or_refused(
    kind: str, folder: Path, tmp_path: Path, listing: bool, serve: Serve
) -> None:
    """What is in a group that cannot be listed and says nothing of it must not be left out in silence."""
    if kind == "plain":
        group = zarr.create_group(folder / "g.zarr")
        group.create_array("em", data=np.eye(4))
        group.create_array("more/mask", data=np.eye(5))
        names = ["em", "more/mask"]
    else:
        group = zarr.create_group(folder / "g.zarr", attributes={"ome": {"bioformats2raw.layout": 3}})
        for name in ("0", "1"):
            write_ome_zarr(folder / "g.zarr" / name, [np.eye(4)], "yx")
        names = ["0/0", "1/0"]
    served = serve(folder, listing=listing)
    out = tmp_path / "copy.zarr"
    try:
        blockbuster.copy(f"{served.url}/g.zarr", out)
    except ImageError as error:
        assert not listing or kind == "collection"
        assert "g.zarr" in str(error)  # noqa: PT017
        assert not out.exists()
    else:
        copied = zarr.open_group(out, mode="r")
        for name in names:
            np.testing.assert_array_equal(copied[name][...], group[name][...])  # type: ignore[index]


def test_a_plain_group_with_consolidated_metadata_is_copied_whole(folder: Path, tmp_path: Path, serve: Serve) -> None:
    group = zarr.create_group(folder / "g.zarr")
    group.create_array("em", data=np.eye(4))
    group.create_array("more/mask", data=np.eye(5))
    consolidate(folder / "g.zarr")
    served = serve(folder)
    blockbuster.copy(f"{served.url}/g.zarr", tmp_path / "copy.zarr")
    copied = zarr.open_group(tmp_path / "copy.zarr", mode="r")
    np.testing.assert_array_equal(copied["em"][...], np.eye(4))  # type: ignore[index]
    np.testing.assert_array_equal(copied["more/mask"][...], np.eye(5))  # type: ignore[index]


@pytest.mark.parametrize(
    "write",
    [
        lambda url: blockbuster.copy(np.eye(4), url),
        lambda url: blockbuster.write_image(np.eye(4), url),
        lambda url: blockbuster.write_labels(np.eye(4, dtype=int), url, "cells"),
        lambda url: blockbuster.label(np.eye(4), write_to=url),
        lambda url: blockbuster.pyramid(url),
    ],
    ids=["copy", "write_image", "write_labels", "label", "pyramid"],
)
def test_nothing_is_written_to_a_url(write: Callable[[str], Any], image: Path, serve: Serve) -> None:
    served = serve(image.parent)
    before = digest(image)
    with pytest.raises((ParameterError, OutputError), match=r"i\.zarr.*not a path on a local file system"):
        write(f"{served.url}/i.zarr")
    assert served.gets == []
    assert digest(image) == before


# What goes wrong


@pytest.mark.parametrize("opened", [open_image, load_ome_zarr, blockbuster.label, blockbuster.copy])
def test_a_url_with_nothing_there_is_refused(
    opened: Callable[[str], Any], folder: Path, listing: bool, serve: Serve
) -> None:
    served = serve(folder, listing=listing)
    with pytest.raises(ImageError, match=rf"{served.url}/none\.zarr"):
        opened(f"{served.url}/none.zarr")


@pytest.mark.parametrize("opened", [open_image, load_ome_zarr, blockbuster.label, blockbuster.copy])
def test_a_server_that_does_not_answer_is_refused(opened: Callable[[str], Any], folder: Path, serve: Serve) -> None:
    from socket import socket

    with socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/i.zarr"
        with pytest.raises(ImageError, match=r"i\.zarr cannot be opened"):
            opened(url)


@pytest.mark.parametrize("status", [401, 403, 500, 503])
def test_a_server_that_refuses_is_an_error_of_the_image(
    status: int, images: Callable[[str, bool], Path], serve: Serve
) -> None:
    served = serve(images("0.5", False).parent)
    for name in METADATA:
        served.answers[name] = status
    for opened in (open_image, blockbuster.label, blockbuster.copy):
        with pytest.raises(ImageError, match=rf"{served.url}/i\.zarr cannot be .*{status}"):
            opened(f"{served.url}/i.zarr")


def test_a_server_that_refuses_the_levels_is_an_error_of_the_image(image: Path, serve: Serve) -> None:
    served = serve(image.parent)
    served.answers.update({"i.zarr/0/zarr.json": 500, "i.zarr/0/.zarray": 500})
    with pytest.raises(ImageError, match=r"i\.zarr"):
        open_image(f"{served.url}/i.zarr")


@pytest.mark.parametrize("kind", ["refused", "cut short"])
def test_a_chunk_that_does_not_arrive_is_an_error_of_its_tile(
    kind: str, folder: Path, tmp_path: Path, serve: Serve
) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    zarr.create_array(folder / "a.zarr", data=stack, chunks=(8, 8))
    served = serve(folder)
    if kind == "refused":
        served.answers["c/2/3"] = 500
    else:
        served.cut.add("c/2/3")
    options: dict[str, Any] = {"tile_shape": (8, 8)}
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(TileError):
            blockbuster.copy(f"{served.url}/a.zarr", tmp_path / "copy.zarr", **options)
        assert not (tmp_path / "copy.zarr").exists()
        served.answers.clear()
        served.cut.clear()
        first = set(served.chunks) - {"a.zarr/c/2/3"}
        served.gets.clear()
        copied = blockbuster.copy(f"{served.url}/a.zarr", tmp_path / "copy.zarr", resume=True, **options)
    np.testing.assert_array_equal(copied.compute(), stack)
    # What had arrived is not asked for again.
    assert len(first) > 0
    assert len(served.chunks) == 25 - len(first)
    assert not first & set(served.chunks)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("change", ["chunk", "shape"])
def test_a_run_on_a_url_does_not_go_on_with_what_has_changed(
    change: str, folder: Path, tmp_path: Path, serve: Serve
) -> None:
    stack = np.random.default_rng(0).integers(0, 255, (40, 40)).astype(np.uint8)
    zarr.create_array(folder / "a.zarr", data=stack, chunks=(8, 8))
    served = serve(folder)
    served.answers["c/2/3"] = 500
    options: dict[str, Any] = {"tile_shape": (8, 8)}
    with dask.config.set(scheduler="synchronous"):
        with pytest.raises(TileError):
            blockbuster.copy(f"{served.url}/a.zarr", tmp_path / "copy.zarr", **options)
        served.answers.clear()
        changed = stack // 2 if change == "chunk" else stack[:32]
        zarr.create_array(folder / "a.zarr", data=changed, chunks=(8, 8), overwrite=True)
        for file in (folder / "a.zarr").rglob("*"):
            # Servers tell times in seconds.
            os.utime(file, (file.stat().st_mtime + 60,) * 2)
        with pytest.raises(ResumeError):
            blockbuster.copy(f"{served.url}/a.zarr", tmp_path / "copy.zarr", resume=True, **options)
    copied = blockbuster.copy(f"{served.url}/a.zarr", tmp_path / "copy.zarr", **options)
    np.testing.assert_array_equal(copied.compute(), changed)


def test_metadata_that_are_cut_short_are_an_error_of_the_image(folder: Path, serve: Serve) -> None:
    zarr.create_array(folder / "a.zarr", data=np.eye(4))
    served = serve(folder)
    served.cut.add("zarr.json")
    with pytest.raises(ImageError, match=r"a\.zarr"):
        open_image(f"{served.url}/a.zarr")


def test_a_page_in_place_of_metadata_is_an_error_of_the_image(folder: Path, serve: Serve) -> None:
    (folder / "a.zarr").mkdir()
    (folder / "a.zarr" / "zarr.json").write_text("<html>Sign in</html>")
    served = serve(folder)
    with pytest.raises(ImageError, match=r"a\.zarr"):
        open_image(f"{served.url}/a.zarr")


def test_a_tiff_or_zip_at_a_url_is_refused_with_what_to_do(folder: Path, serve: Serve) -> None:
    tifffile.imwrite(folder / "i.tif", np.eye(4))
    served = serve(folder)
    with pytest.raises(ImageError, match=r"i\.tif"):
        open_image(f"{served.url}/i.tif")
    (folder / "i.zarr.zip").write_bytes(b"")
    with pytest.raises(ImageError, match=r"i\.zarr\.zip"):
        open_image(f"{served.url}/i.zarr.zip")


@pytest.mark.parametrize(
    ("missing", "url"),
    [("aiohttp", "http://127.0.0.1:9/i.zarr"), ("s3fs", "s3://bucket/i.zarr")],
)
def test_what_opens_urls_is_named_where_it_is_not_installed(missing: str, url: str) -> None:
    program = f"""
        import sys
        sys.modules["{missing}"] = None
        import blockbuster
        for opened in (blockbuster.open_image, blockbuster.load_ome_zarr, blockbuster.label, blockbuster.copy):
            try:
                opened("{url}")
            except blockbuster.ImageError as error:
                print(error)
    """
    made = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False, timeout=120
    )
    lines = made.stdout.splitlines()
    assert len(lines) == 4, made.stderr
    assert all(url in line and "pip install 'blockbuster-imaging[remote]'" in line for line in lines)
