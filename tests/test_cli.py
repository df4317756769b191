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
from blockbuster.cli import COMMANDS, main

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
    assert found.pop("command") == "plan"
    assert found.pop("seconds_taken") >= 0
    return found


def without_times(made: dict[str, Any]) -> dict[str, Any]:
    """What does not change from one try to the next."""
    changing = ("seconds", "seconds_range", "tile_seconds", "peak_memory", "measured_tile_memory", "disks")
    return {name: value for name, value in made.items() if name not in changing}


def test_a_plan_is_that_of_python(image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.zarr")
    words = ["--tile-shape", "16,8", "--connectivity", "2", "--write-to", out, "--time-tiles", "0"]
    made = planned(capsys, image, "--operation", "label", *words)
    expected = blockbuster.plan(image, tile_shape=(16, 8), connectivity=2, write_to=out, time_tiles=0)
    assert without_times(made) == without_times(json.loads(json.dumps(expected.as_dict())))
    assert made["disks"][0]["files"] == expected.disks[0].files
    assert sorted(os.listdir(tmp_path)) == ["image.zarr", "system-tmp"]


def test_a_plan_is_printed_as_a_table(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", image, "--tile-shape", "16,16"]) == 0
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
    smaller = planned(capsys, image, "--operation", "downsample", "--scale-factor", "2,4", "--method", "mean")
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
    assert main(["plan", image, "--tile-shape", "32,32", "--n-workers", "1", "--memory-limit", "1000"]) == 1
    captured = capsys.readouterr()
    assert "fits     no" in captured.out
    assert "problem  label: a task on one tile, with its halo (32, 32) of uint8" in captured.out
    assert captured.err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.zarr"], "ImageError: There is nothing at .*nowhere.zarr"),
        (["IMAGE", "--channel", "none", "--level", "7"], "ImageError: .*level"),
        (["IMAGE", "--tile-shape", "8,8,8"], "GeometryError: tile_shape"),
        (["IMAGE", "--operation", "copy", "--threshold", "3"], "ParameterError: copy cannot be called so"),
        (["IMAGE", "--fn", "segment"], "ParameterError: 'segment' is not MODULE:NAME"),
        (["IMAGE", "--fn", "no_such:f"], "ParameterError: 'no_such:f' cannot be imported: No module named 'no_such'"),
        (["IMAGE", "--fn", "os:no_such"], "ParameterError: 'os:no_such' cannot be imported: module 'os' has no attrib"),
        (["IMAGE", "--fn", "os:sep"], "ParameterError: 'os:sep' is a str, which cannot be called"),
        (["IMAGE", "--operation", "fold"], "ParameterError: operation 'fold' is unknown. Choose one of 'label'"),
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
        ([], "Usage: blockbuster [OPTIONS] COMMAND"),
        (["fold"], "No such command 'fold'"),
        (["plan"], "Usage: blockbuster plan [OPTIONS] IMAGE"),
        (["label", "i.zarr"], "Missing argument 'OUTPUT'"),
        (["plan", "i.zarr", "--fold", "2"], "No such option '--fold'"),
        (["plan", "i.zarr", "--option", "verify"], "'verify' is not NAME=VALUE"),
        (["plan", "i.zarr", "--tile-shape", "x"], "'x' is neither 'auto' nor ints with commas between"),
        (["label", "i.zarr", "o.zarr", "--block-ids", "1,x"], "'1,x' is neither an int nor ints with commas between"),
        (["blobs", "i.zarr", "o.parquet", "--min-sigma", "1,x"], "'1,x' is neither a number nor numbers"),
        (["label", "i.zarr", "o.zarr", "--threshold", "high"], "'high' is not a valid float"),
    ],
)
def test_what_is_no_command_is_status_2(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", *(command.name for command in COMMANDS)])
def test_help_is_printed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*filter(None, [name]), "--help"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"Usage: blockbuster {name}")
    assert max(map(len, printed.split("\n"))) <= 120
    if name:
        (command,) = [one for one in COMMANDS if one.name == name]
        assert all(place.make_metavar(None) in printed for place in command.paths)
        assert all(option.opts[0] in printed for option in command.options)


def test_the_module_is_the_command() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-W", "error", "-m", "blockbuster", "--version"]
    made = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert made.stdout == f"blockbuster {blockbuster.__version__}\n"


def test_the_command_is_installed() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert tomllib.load(file)["project"]["scripts"] == {"blockbuster": "blockbuster.cli:main"}
