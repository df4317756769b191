"""The command `blockbuster`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import blockbuster
from blockbuster.cli import main

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("synchronous")


@pytest.fixture
def image(tmp_path: Path) -> str:
    zarr.create_array(tmp_path / "image.zarr", data=np.eye(32, dtype=np.uint8), chunks=(8, 8))
    return str(tmp_path / "image.zarr")


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["plan", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    return found


def without_times(made: dict[str, Any]) -> dict[str, Any]:
    """What does not change from one try to the next."""
    changing = ("seconds", "seconds_range", "tile_seconds", "peak_memory", "measured_tile_memory", "disks")
    return {name: value for name, value in made.items() if name not in changing}


def test_a_plan_is_that_of_python(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.zarr")
    words = ["--tile-shape", "16", "8", "--connectivity", "2", "--write-to", out, "--time-tiles", "0"]
    made = planned(capsys, image, "--operation", "label", *words)
    expected = blockbuster.plan(image, tile_shape=(16, 8), connectivity=2, write_to=out, time_tiles=0)
    assert without_times(made) == without_times(json.loads(json.dumps(expected.as_dict())))
    assert made["disks"][0]["files"] == expected.disks[0].files
    assert sorted(os.listdir(tmp_path)) == ["image.zarr", "system-tmp"]


def test_a_plan_is_printed_as_a_table(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", image, "--tile-shape", "16"]) == 0
    lines = capsys.readouterr().out.split("\n")
    assert lines[:2] == ["label of uint8 (32, 32)", "tiles    4 of (16, 16), grid (2, 2)"]
    assert "fits     yes" in lines


def test_a_function_is_found_by_its_module_and_name(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = planned(capsys, image, "--fn", "tests.helpers:components", "--overlap", "1", "--merge", "iou")
    assert (made["operation"], made["overlap"]) == ("tile_process", [1, 1])
    assert len(made["tile_seconds"]) == 3


def test_a_function_is_found_in_the_working_folder(image: str, tmp_path: Path) -> None:
    (tmp_path / "my_segmenter.py").write_text("def segment(tile):\n    return (tile > 0).astype('int32')\n")
    words = ["plan", image, "--fn", "my_segmenter:segment", "--json"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    # Not by the path of the program: the installed command has another one.
    code = "import sys; sys.path.remove(''); from blockbuster.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *words]
    made = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["operation"] == "tile_process"


def test_options_of_every_operation_are_taken(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.zarr")
    copied = planned(
        capsys, image, "--operation", "copy", "--write-to", out, "--chunks", "16", "--option", "verify=True"
    )
    assert (copied["operation"], copied["tile_shape"]) == ("copy", [32, 32])
    smaller = planned(capsys, image, "--operation", "downsample", "--scale-factor", "2", "4", "--method", "mean")
    assert (smaller["operation"], smaller["grid"]) == ("downsample", [2, 1])
    some = planned(capsys, image, "--block-ids", "3", "--mask", image, "--dtype", "uint16", "--option", "threshold=0.5")
    assert some["n_tiles"] == 1
    written = planned(capsys, image, "--operation", "write_image", "--write-to", out, "--option", "axes=yx")
    assert written["operation"] == "write_image"


def test_a_cluster_to_be_is_described_in_words(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--n-workers", "3", "--threads-per-worker", "2", "--memory-limit", "8 GiB", "--time-tiles", "0"]
    made = planned(capsys, image, *words)
    assert (made["n_workers"], made["tiles_at_once"], made["memory_limit"]) == (3, 6, 8 * 2**30)


def test_what_cannot_fit_is_told_and_is_status_1(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", image, "--tile-shape", "32", "--n-workers", "1", "--memory-limit", "1000"]) == 1
    captured = capsys.readouterr()
    assert "fits     no" in captured.out
    assert re.match(
        r"blockbuster plan: CapacityError: label: a task on one tile, with its halo \(32, 32\) of uint8", captured.err
    )
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.zarr"], "ImageError: There is nothing at .*nowhere.zarr"),
        (["IMAGE", "--channel", "none", "--level", "7"], "ImageError: .*level"),
        (["IMAGE", "--tile-shape", "8", "8", "8"], "GeometryError: tile_shape"),
        (["IMAGE", "--operation", "copy", "--threshold", "3"], "ParameterError: copy cannot be called so"),
        (["IMAGE", "--fn", "tests.test_cli:fail"], "TileError: Tile .*: the function failed with RuntimeError: no"),
    ],
)
def test_errors_are_told_without_a_traceback(
    words: list[str], message: str, image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *(image if word == "IMAGE" else word for word in words)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.match(f"blockbuster plan: {message}", captured.err)
    assert "Traceback" not in captured.err


def fail(_block: Any) -> Any:
    raise RuntimeError("no")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["segment"], "invalid choice: 'segment'"),
        (["plan"], "the following arguments are required: IMAGE"),
        (["plan", "i.zarr", "--fn", "segment"], "'segment' is not MODULE:NAME"),
        (["plan", "i.zarr", "--fn", "no_such_module:f"], "cannot be imported: No module named 'no_such_module'"),
        (["plan", "i.zarr", "--fn", "os:no_such"], "cannot be imported: module 'os' has no attribute 'no_such'"),
        (["plan", "i.zarr", "--fn", "os:sep"], "'os:sep' is a str, which cannot be called"),
        (["plan", "i.zarr", "--option", "verify"], "'verify' is not NAME=VALUE"),
        (["plan", "i.zarr", "--tile-shape", "x"], "'x' is neither a number of voxels nor 'auto'"),
        (["plan", "i.zarr", "--operation", "fold"], "invalid choice: 'fold'"),
    ],
)
def test_what_is_no_command_is_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["plan", "--help"]])
def test_help_is_printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    captured = capsys.readouterr().out
    assert captured.startswith("usage: blockbuster")
    assert "what a run would take" in captured or "Say what a run would take" in captured


def test_the_module_is_the_command() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "error", "-m", "blockbuster", "--version"]
    made = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert made.stdout == f"blockbuster {blockbuster.__version__}\n"


def test_the_command_is_installed() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["scripts"] == {"blockbuster": "blockbuster.cli:main"}
