"""Each command of `blockbuster` as a person would type it, on real files: what it makes, and what it says."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import scipy.ndimage
import skimage.data
import tifffile
import zarr
from numpy.typing import NDArray
from skimage.feature import blob_log

import blockbuster
from blockbuster.cli import COMMANDS, main
from tests.helpers import assert_same_objects, components, leftovers
from tests.test_project import fences

ROOT = Path(__file__).parent.parent
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
IMAGE = scipy.ndimage.gaussian_filter(np.random.default_rng(0).random((64, 80)), 2)
IMAGE = (255 * (IMAGE - IMAGE.min()) / (IMAGE.max() - IMAGE.min())).astype(np.uint8)
FOREGROUND = IMAGE > 140


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one image in three forms."""
    folder = tmp_path / "work"
    folder.mkdir()
    zarr.create_array(folder / "image.zarr", data=IMAGE, chunks=(32, 32))
    blockbuster.write_image(IMAGE, folder / "image.ome.zarr", scale=0.5, unit="um", n_levels=2, chunks=(32, 32))
    tifffile.imwrite(folder / "image.tif", IMAGE, tile=(32, 32))
    return folder


def typed(folder: Path, *words: str, status: int = 0) -> str:
    """What a command prints, in a process of its own; nothing else is said where all goes well."""
    command = [sys.executable, "-m", "blockbuster", *words]
    made = subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, check=False, timeout=120)
    assert made.returncode == status, made.stderr
    assert "Traceback" not in made.stderr
    if status == 0:
        assert made.stderr == ""
        return made.stdout
    assert made.stdout == ""
    return made.stderr


def facts(folder: Path, *words: str) -> dict[str, Any]:
    """What a command tells as JSON."""
    told: dict[str, Any] = json.loads(typed(folder, *words, "--json"))
    assert told.pop("command") == words[0]
    assert told.pop("seconds_taken") >= 0
    return told


def labels_in(folder: Path, name: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(folder / name, path="labels", mode="r")[:])


# Each command


@pytest.mark.parametrize("name", ["image.zarr", "image.ome.zarr", "image.tif"])
def test_info_says_what_an_image_is(name: str, folder: Path) -> None:
    told = facts(folder, "info", name)
    assert (told["shape"], told["dtype"], told["bytes"]) == ([64, 80], "uint8", 64 * 80)
    assert told["chunks"] == [32, 32]
    if name == "image.ome.zarr":
        assert (told["axes"], told["format"], told["unit"]) == ("yx", "OME-Zarr 0.5", ["micrometer"] * 2)
        assert (told["levels"], told["scale"]) == ([[64, 80], [32, 40]], [0.5, 0.5])
    printed = typed(folder, "info", name)
    assert "shape          64, 80\n" in printed


@pytest.mark.parametrize("name", ["image.zarr", "image.ome.zarr", "image.tif"])
def test_label_gives_the_ids_of_scipy(name: str, folder: Path) -> None:
    told = facts(folder, "label", name, "labels.zarr", "--threshold", "140", "--tile-shape", "32,32")
    expected, n = scipy.ndimage.label(FOREGROUND)
    assert (told["n_objects"], told["shape"], told["labels"]) == (n, [64, 80], "labels.zarr/labels")
    np.testing.assert_array_equal(labels_in(folder, "labels.zarr"), expected)


def test_segment_splits_by_otsu_and_takes_functions(folder: Path) -> None:
    told = facts(folder, "segment", "image.zarr", "cells.zarr", "--param", "min_distance=4")
    assert (told["merge"], told["overlap"]) == ("iou", 16)
    assert told["n_objects"] == len(np.unique(labels_in(folder, "cells.zarr"))) - 1 > 3
    (folder / "mine.py").write_text("def bright(tile, above):\n    return (tile > above).astype('int32')\n")
    typed(folder, "segment", "image.zarr", "mine.zarr", "--method", "mine:bright", "--param", "above=140")
    np.testing.assert_array_equal(labels_in(folder, "mine.zarr") > 0, FOREGROUND)


def test_merge_makes_objects_whole(folder: Path) -> None:
    typed(folder, "segment", "image.zarr", "pieces.zarr", "--method", "tests.helpers:components", "--merge", "none")
    told = facts(folder, "merge", "pieces.zarr", "whole.zarr", "--merge", "touching")
    assert_same_objects(labels_in(folder, "whole.zarr"), scipy.ndimage.label(IMAGE)[0])
    assert told["n_objects"] == scipy.ndimage.label(IMAGE)[1]


def test_copy_and_downsample_and_pyramid(folder: Path) -> None:
    told = facts(folder, "copy", "image.tif", "copy.zarr", "--chunks", "16,40", "--compression", "zstd", "--verify")
    assert told == {"output": "copy.zarr", "shape": [64, 80]}
    copied = zarr.open_array(folder / "copy.zarr", mode="r")
    assert copied.chunks == (16, 40)
    np.testing.assert_array_equal(copied[:], IMAGE)
    typed(folder, "downsample", "image.zarr", "half.zarr", "--scale-factor", "2,4", "--method", "max")
    np.testing.assert_array_equal(
        zarr.open_array(folder / "half.zarr", mode="r")[:], IMAGE.reshape(32, 2, 20, 4).max(axis=(1, 3))
    )
    told = facts(folder, "pyramid", "image.ome.zarr", "--n-levels", "3", "--overwrite")
    assert told["levels"] == [[64, 80], [32, 40], [16, 20]]
    assert len(blockbuster.open_image(folder / "image.ome.zarr").levels) == 3


def test_blobs_are_those_of_the_whole_image(folder: Path) -> None:
    look = ["--min-sigma", "2", "--max-sigma", "4", "--num-sigma", "3", "--threshold", "0.02"]
    told = facts(folder, "blobs", "image.ome.zarr", "blobs.parquet", *look, "--tile-shape", "40,40")
    expected = blob_log(IMAGE, 2, 4, 3, threshold=0.02)
    table = pyarrow.parquet.read_table(folder / "blobs.parquet")
    assert told == {"table": "blobs.parquet", "n_blobs": len(expected)}
    found = np.column_stack([table[name].to_numpy() for name in ("y", "x", "sigma")])
    assert sorted(map(tuple, found)) == sorted(map(tuple, expected))


def test_report_writes_a_page_beside_the_store(folder: Path) -> None:
    typed(folder, "label", "image.zarr", "labels.zarr", "--threshold", "140", "--tile-shape", "32,32", "--report")
    page = folder / "labels.labels.report.html"
    assert "Who was at work when" in page.read_text()
    page.unlink()
    told = facts(folder, "report", "labels.zarr", "--image", "image.zarr", "--tile-shape", "32,32")
    assert told == {"report": str(folder / "labels.labels.report.html")}
    assert "<h1>labels.labels</h1>" in Path(told["report"]).read_text()
    typed(folder, "report", "labels.zarr", "--component", "labels", "--max-faces", "0", "--write-to", "page.html")
    assert "<h2>Seams</h2>" not in (folder / "page.html").read_text()


def test_one_number_is_the_tile_shape_of_all_axes(folder: Path) -> None:
    told = facts(folder, "segment", "image.zarr", "labels.zarr", "--method", "otsu", "--tile-shape", "32")
    assert told["n_tiles"] == facts(folder, "label", "image.zarr", "b.zarr", "--tile-shape", "32,32")["n_tiles"]
    facts(folder, "copy", "image.zarr", "copy.zarr", "--chunks", "16", "--tile-shape", "32")
    np.testing.assert_array_equal(zarr.open_array(folder / "copy.zarr")[:], zarr.open_array(folder / "image.zarr")[:])


def test_a_segmenter_that_is_not_there_says_what_to_install(folder: Path) -> None:
    if importlib.util.find_spec("cellpose") is not None:
        pytest.skip("Cellpose is installed")
    words = typed(folder, "segment", "image.zarr", "labels.zarr", "--method", "cellpose", status=1)
    assert "pip install 'blockbuster-imaging[cellpose]'" in words
    words = typed(
        folder, "segment", "image.zarr", "labels.zarr", "--method", "stardist", "--param", "model=2D_demo", status=1
    )
    assert "Give --overlap, about two objects wide" in words


def test_view_says_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "napari", None)
    assert main(["view", str(folder / "image.zarr")]) == 1
    assert "pip install 'blockbuster-imaging[napari]'" in capsys.readouterr().err


def test_each_command_is_tried_here_or_with_the_demo() -> None:
    text = Path(__file__).read_text()
    # The demo has a test in test_project.py, plans have theirs in test_cli.py.
    tried = {"demo", "plan"} | {command.name for command in COMMANDS if f'"{command.name}", ' in text}
    assert {command.name for command in COMMANDS} - tried == set()


# The page


def sayings(page: Path) -> list[tuple[list[str], str | None]]:
    """The commands of a page, block by block, and what it says that the last of them prints."""
    blocks = fences(page)
    return [
        (block.text.strip().split("\n"), after.text if after and after.language == "text" and after.follows else None)
        for block, after in itertools.zip_longest(blocks, blocks[1:])
        if block.language == "sh"
    ]


def without_changing(text: str) -> str:
    """The time and the place are those of a run."""
    text = re.sub(r"(seconds.taken\W+)[\d.]+", r"\1...", text)
    return re.sub(r"(path +)\S*/", r"\1/data/", text).strip()


def test_the_page_shows_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("coins.tif", skimage.data.coins())
    for lines, said in sayings(ROOT / "docs" / "command-line.md"):
        for line in lines:
            capsys.readouterr()
            program, *words = shlex.split(line)
            assert program == "blockbuster"
            assert main(words) == 0, capsys.readouterr().err
        if said is not None:
            assert without_changing(capsys.readouterr().out) == without_changing(said)


# Where it runs


@pytest.mark.parametrize("words", [["threads"], ["processes", "--workers", "2"], ["local", "--workers", "1"]])
def test_every_scheduler_can_be_chosen(words: list[str], folder: Path) -> None:
    typed(folder, "label", "image.zarr", "labels.zarr", "--threshold", "140", "--scheduler", *words)
    np.testing.assert_array_equal(labels_in(folder, "labels.zarr"), scipy.ndimage.label(FOREGROUND)[0])
    assert leftovers(folder) == []


def test_a_cluster_that_is_there_is_used(local_cluster: str, folder: Path) -> None:
    typed(folder, "label", "image.zarr", "labels.zarr", "--threshold", "140", "--scheduler", local_cluster)
    np.testing.assert_array_equal(labels_in(folder, "labels.zarr"), scipy.ndimage.label(FOREGROUND)[0])


# Runs in files


def test_a_run_is_written_and_read(folder: Path) -> None:
    words = ["--threshold", "140", "--tile-shape", "32,40", "--option", "connectivity=2", "--scheduler", "synchronous"]
    typed(folder, "label", "image.zarr", "labels.zarr", *words, "--save-run", "run.toml")
    told = tomllib.loads((folder / "run.toml").read_text())
    assert told["options"] == {"threshold": 140.0, "tile_shape": [32, 40], "connectivity": 2}
    assert told["paths"]["image"] == str(folder / "image.zarr")
    first = labels_in(folder, "labels.zarr")
    np.testing.assert_array_equal(first, scipy.ndimage.label(FOREGROUND, np.ones((3, 3)))[0])
    assert "OutputExistsError: There is already something at" in typed(folder, "run", "run.toml", status=1)
    # From anywhere.
    typed(folder.parent, "run", str(folder / "run.toml"), "--overwrite")
    np.testing.assert_array_equal(labels_in(folder, "labels.zarr"), first)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("command = 'label'", "describes no run: it has command"),
        ("command = 'fly'\n[paths]", "describes the command 'fly'. There is none"),
        ("what?", "describes no run"),
    ],
)
def test_what_describes_no_run_is_refused(text: str, words: str, folder: Path, capsys: Any) -> None:
    (folder / "run.toml").write_text(text)
    assert main(["run", str(folder / "run.toml")]) == 1
    assert words in capsys.readouterr().err


def test_warnings_are_told_in_words(folder: Path) -> None:
    words = ["blobs", "image.zarr", "b.parquet", "--max-sigma", "12", "--num-sigma", "2"]
    command = [sys.executable, "-m", "blockbuster", *words]
    made = subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, check=True)
    assert made.stderr.startswith("blockbuster blobs: warning: overlap (66, 66) exceeds the tile shape (32, 32)")
    assert made.stderr.count("\n") == 1


# What goes wrong


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label", "nowhere.zarr", "o.zarr"], "ImageError: There is nothing at"),
        (["label", "notes.txt", "o.zarr"], "ImageError"),
        (["label", "image.ome.zarr", "o.zarr", "--level", "7"], "ImageError: level 7 was asked for"),
        (["label", "image.zarr", "there.zarr"], "OutputExistsError"),
        (["blobs", "image.zarr", "o.csv", "--max-sigma", "3"], "ParameterError: write_to 'o.csv' is not"),
        (["segment", "image.zarr", "o.zarr", "--method", "magic"], "ParameterError: method 'magic' is unknown"),
        (["segment", "image.zarr", "o.zarr", "--param", "size=3"], "ParameterError: method 'otsu' cannot be made"),
        (["segment", "image.zarr", "o.zarr", "--method", "tests.test_commands:fail"], "TileError: Tile ("),
        (["label", "image.zarr", "o.zarr", "--scheduler", "moon"], "ParameterError: --scheduler 'moon' is unknown"),
        (["label", "image.zarr", "o.zarr", "--option", "colour=3"], "TypeError"),
        (["copy", "image.zarr", "o.zarr", "--dtype", "bool", "--casting", "exact"], "TileError"),
    ],
)
def test_errors_are_those_of_python_in_one_screen(
    words: list[str], message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(folder)
    (folder / "notes.txt").write_text("no image")
    assert main(["label", "image.zarr", "there.zarr"]) == 0
    capsys.readouterr()
    assert main(words) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"blockbuster {words[0]}: ")
    assert message in printed.err
    assert "Traceback" not in printed.err
    assert len(printed.err.split("\n")) < 25
    assert not (folder / "o.zarr").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["label", "nowhere.zarr", "o.zarr"], "ImageError: There is nothing at"),
        (["segment", "image.zarr", "o.zarr", "--method", "tests.test_commands:fail"], "TileError: Tile ("),
    ],
)
def test_errors_of_a_process_are_on_one_screen_as_well(words: list[str], message: str, folder: Path) -> None:
    assert message in typed(folder, *words, status=1)


def fail(_tile: Any) -> Any:
    raise RuntimeError("no luck")


def test_the_traceback_is_shown_when_asked_for(folder: Path) -> None:
    words = ["segment", "image.zarr", "o.zarr", "--method", "tests.test_commands:fail", "--debug"]
    command = [sys.executable, "-m", "blockbuster", *words]
    made = subprocess.run(command, cwd=folder, env=ENVIRON, capture_output=True, text=True, check=False)
    assert made.returncode == 1
    assert "Traceback" in made.stderr
    assert "no luck" in made.stderr


# People who watch, and who lose patience


def slow(tile: NDArray[Any]) -> NDArray[Any]:
    """So slow that there is a middle of a run."""
    time.sleep(0.3)
    return components(tile)


def test_a_bar_is_shown_where_somebody_looks(folder: Path) -> None:
    main_end, its_end = pty.openpty()
    words = ["segment", "image.zarr", "o.zarr", "--method", "tests.test_commands:slow"]
    with subprocess.Popen(
        [sys.executable, "-m", "blockbuster", *words],
        cwd=folder,
        env={**ENVIRON, "TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.DEVNULL,
        stderr=its_end,
    ) as process:
        os.close(its_end)
        said = b""
        # The end of the terminal is an error on Linux.
        while True:
            try:
                part = os.read(main_end, 4096)
            except OSError:
                break
            said += part
        assert process.wait() == 0
    os.close(main_end)
    assert b"12/12" in said
    assert b"tiles" in said


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_an_interrupted_run_says_how_to_go_on_and_does(scheduler: str, folder: Path) -> None:
    words = ["segment", "image.zarr", "o.zarr", "--method", "tests.test_commands:slow", "--tile-shape", "8,8"]
    words += ["--scheduler", scheduler, "--workers", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "blockbuster", *words],
        cwd=folder,
        env=ENVIRON,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        end = time.monotonic() + 60
        while len(list(folder.rglob("*.tile"))) < 4 and time.monotonic() < end:
            time.sleep(0.05)
        # As a terminal does: to all processes of the job.
        os.killpg(process.pid, signal.SIGINT)
        began = time.monotonic()
        out, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    # A tile takes 0.3 s, all that were left 10 s and more.
    done = len(list(folder.rglob("*.tile")))
    assert 4 <= done < 40, (done, time.monotonic() - began)
    assert said.strip().endswith("stopped. The same command with --resume goes on where it stopped.")
    assert "Traceback" not in said
    assert out == ""
    assert not (folder / "o.zarr").exists()
    typed(folder, *words, "--resume")
    assert_same_objects(labels_in(folder, "o.zarr"), scipy.ndimage.label(IMAGE)[0])
    assert leftovers(folder) == []
