"""Copies, smaller images, pyramids and patches that are stopped at any step, and go on from there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import zarr

import blockbuster
from blockbuster import OutputExistsError, ResumeError, TileError, tiling
from tests.drivers.crashing import CASES, SHAPE, Case, noise, out_of, some_mask
from tests.helpers import digest, leftovers

ROOT = Path(__file__).parents[1]
# Of the steps on files one in so many is tried; all at night.
STRIDE = 1 if hypothesis.settings.get_current_profile_name() == "thorough" else 9


@pytest.fixture(autouse=True)
def _simple(synchronous: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One thread, and tiles as small as chunks."""
    monkeypatch.setattr(tiling, "_SMALL_TILE", 1)


class Place:
    """A folder in which a case can be tried again and again."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.to = folder / "to"
        self.to.mkdir(parents=True)
        case.prepare(folder)
        self.inputs = self._inputs()
        self.before = digest(self.to)
        shutil.copytree(self.to, folder / "backup")
        case.run(folder)
        self.after = digest(self.to)
        assert self.after != self.before
        assert leftovers(self.to) == []
        self.restore()

    def restore(self) -> None:
        """What was before."""
        shutil.rmtree(self.to)
        shutil.copytree(self.folder / "backup", self.to)

    def run(self, **options: Any) -> Any:
        """Do it."""
        return self.case.run(self.folder, **options)

    @property
    def name(self) -> str:
        """Which case it is."""
        return next(name for name, case in CASES.items() if case is self.case)

    @property
    def store(self) -> dict[str, str]:
        """What is stored now, scratch data left out."""
        return {name: content for name, content in digest(self.to).items() if name.startswith("to/out.zarr/")}

    @property
    def stages(self) -> list[Path]:
        """Scratch data of stopped runs."""
        return sorted(self.to.glob("*.blockbuster-????????"))

    @property
    def differences(self) -> list[str]:
        """What is not as it is after an uninterrupted run: inputs, outputs, and scratch data."""
        now, then = {**digest(self.to), **self._inputs()}, {**self.after, **self.inputs}
        differing = [name for name in {**now, **then} if now.get(name) != then.get(name)]
        return sorted({*differing, *leftovers(self.to)})

    def assert_done(self) -> None:
        """All is there, byte by byte, and nothing else."""
        assert self.differences == []

    def _inputs(self) -> dict[str, str]:
        return {name: content for path in self.folder.glob("*.zarr") for name, content in digest(path).items()}


@pytest.fixture(scope="module", params=CASES)
def shared_place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Each case in turn."""
    import dask

    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="synchronous"):
        patch.setattr(tiling, "_SMALL_TILE", 1)
        return Place(CASES[request.param], tmp_path_factory.mktemp("case"))


@pytest.fixture
def place(shared_place: Place) -> Place:
    """Each case in turn, nothing done yet."""
    shared_place.restore()
    return shared_place


def place_of(name: str, folder: Path) -> Place:
    """One case."""
    return Place(CASES[name], folder / "place")


# Stopped at a tile


class StoppedError(Exception):
    """Raised where a run is to stop."""


class Steps:
    """What tiles cost: counted, and stopped at one call of one kind.

    Attributes
    ----------
    done : Counter
        Tiles "made" by the function, "written", "noted" in the journal, and "kept", noted as written. Those that hold
        what others may change before the run goes on, since a mask goes through them, are "merged", and made again.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: Counter[str] = Counter()
        self._stop: tuple[str, int, BaseException] | None = None
        self._begun: Counter[str] = Counter()
        resampling = blockbuster.resampling
        for owner in (blockbuster.transfer.Copying, resampling.Stride, resampling.Cells, resampling.Interpolation):
            self._count(monkeypatch, owner, "__call__", "made")
        self._count(monkeypatch, blockbuster.outputs.Output, "write", "written")
        self._count(monkeypatch, blockbuster.raw.RawChunks, "copy", "written")
        self._count(monkeypatch, blockbuster.stage.Stage, "write_tile", "noted")

    def stop_at(self, kind: str, call: int, error: BaseException | None = None) -> None:
        """Raise an error in place of that call; counts begin anew."""
        self._stop = (kind, call, error or StoppedError("stopped"))
        self.count_anew()

    def go_on(self) -> None:
        """Raise nothing any more; counts begin anew."""
        self._stop = None
        self.count_anew()

    def count_anew(self) -> None:
        self.done.clear()
        self._begun.clear()

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, kind: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self._begun[kind] += 1
            if self._stop is not None and self._stop[:2] == (kind, self._begun[kind]):
                raise self._stop[2]
            result = original(*args, **kwargs)
            self.done[kind] += 1
            if kind == "noted":
                self.done["merged"] += "merged" in args[2]
                self.done["kept"] += not {"merged", "outside"} & set(args[2])
            return result

        monkeypatch.setattr(owner, name, counted)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Counts steps."""
    return Steps(monkeypatch)


def assert_stopped(place: Place, error: BaseException, n_noted: int) -> None:
    """A run that was stopped has changed nothing, and left what it takes to go on, and said where."""
    assert place.store == place.before
    if n_noted == 0:
        assert digest(place.to) == place.before
        assert leftovers(place.to) == []
        return
    (stage,) = place.stages
    (partial,) = place.to.glob("*.partial")
    told = " ".join(error.__notes__)
    assert f"{n_noted} finished tiles are kept in {stage}" in told
    assert "resume=True" in told
    assert str(partial) in told


@pytest.mark.parametrize(
    "kind", [pytest.param("made", marks=pytest.mark.slow), pytest.param("written", marks=pytest.mark.slow), "noted"]
)
def test_a_run_stopped_at_any_tile_goes_on_there(place: Place, steps: Steps, kind: str) -> None:
    steps.go_on()
    place.run()
    whole = steps.done.copy()
    assert (whole["noted"], whole["written"]) == (place.case.tiles, place.case.writes)
    assert whole["made"] in (0, place.case.writes)
    for call in range(1, whole[kind] + 1, 1 + whole[kind] // 5):
        place.restore()
        steps.stop_at(kind, call)
        with pytest.raises(TileError) as caught:
            place.run()
        assert isinstance(caught.value.__cause__, StoppedError)
        done = steps.done.copy()
        assert_stopped(place, caught.value, done["noted"])
        steps.go_on()
        place.run(resume=True)
        assert steps.done["noted"] == whole["noted"] - done["noted"] + done["merged"]
        assert steps.done["written"] == whole["written"] - done["kept"]
        assert steps.done["made"] == (whole["written"] - done["kept"] if whole["made"] else 0)
        place.assert_done()


@pytest.mark.parametrize("kind", ["written", "noted"])
def test_an_interrupted_run_goes_on_as_well(place: Place, steps: Steps, kind: str) -> None:
    steps.stop_at(kind, 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        place.run()
    done = steps.done.copy()
    assert_stopped(place, caught.value, done["noted"])
    steps.go_on()
    place.run(resume=True)
    assert steps.done["written"] == place.case.writes - done["kept"]
    place.assert_done()


def test_a_run_may_be_stopped_again_and_again(place: Place, steps: Steps) -> None:
    n_kept = 0
    for call in (2, 1, 2):
        steps.stop_at("written", call)
        with pytest.raises(TileError):
            place.run(resume=True)
        n_kept += steps.done["kept"]
    steps.go_on()
    place.run(resume=True)
    assert steps.done["written"] == place.case.writes - n_kept
    place.assert_done()


def test_without_resume_a_run_begins_anew_and_tells_of_the_stopped_one(
    place: Place, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    steps.stop_at("written", 3)
    with pytest.raises(TileError):
        place.run()
    (stage,) = place.stages
    kept = {name: content for name, content in digest(place.to).items() if not name.startswith("to/out.zarr/")}
    steps.go_on()
    place.run()
    assert steps.done["written"] == place.case.writes
    assert place.store == place.after
    assert [
        record
        for record in caplog.records
        if record.levelname == "WARNING" and str(stage) in record.getMessage() and "resume=True" in record.getMessage()
    ]
    left = {name: content for name, content in digest(place.to).items() if not name.startswith("to/out.zarr/")}
    assert left == kept


# Stopped at the end


class FullDisk:
    """Lets the renames in one folder fail from the n-th on; counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, fatal: int) -> None:
        self.n_renames = 0
        self._folder = folder
        self._fatal = fatal
        for name in ("rename", "replace"):
            monkeypatch.setattr(os, name, self._failing(getattr(os, name)))

    def _failing(self, move: Callable[..., None]) -> Callable[..., None]:
        def moved(source: Any, target: Any, **options: Any) -> None:
            if any(Path(path).is_relative_to(self._folder) for path in (source, target)):
                self.n_renames += 1
                if self.n_renames >= self._fatal:
                    raise OSError(errno.ENOSPC, "No space left on device")
            move(source, target, **options)

        return moved


def test_a_run_that_fails_while_its_output_is_put_in_place_goes_on(place: Place) -> None:
    for fatal in range(1, 100):
        place.restore()
        with pytest.MonkeyPatch.context() as patch:
            disk = FullDisk(patch, out_of(place.folder), fatal)
            with contextlib.suppress(OSError):
                place.run()
        if disk.n_renames < fatal:
            break
        place.run(resume=True)
        assert place.differences == [], fatal
    assert 1 < fatal < 99
    place.assert_done()


@pytest.mark.parametrize("moment", ["annotate", "commit"])
def test_until_a_run_is_complete_its_output_is_as_it_was(
    place: Place, steps: Steps, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        for kind in (blockbuster.outputs.Output, blockbuster.outputs.Patch, blockbuster.outputs.Members):
            patch.setattr(kind, moment, refuse)
        with pytest.raises(StoppedError) as caught:
            place.run()
    assert_stopped(place, caught.value, place.case.tiles)
    n_merged = steps.done["merged"]
    steps.go_on()
    place.run(resume=True)
    assert steps.done["written"] == (0 if moment == "commit" else n_merged)
    place.assert_done()


def test_labels_that_were_not_registered_yet_are_when_the_run_is_resumed(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of("write_labels", tmp_path)

    def refuse(*_args: Any) -> None:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(blockbuster.writing, "_register", refuse)
        with pytest.raises(StoppedError):
            place.run()
    assert blockbuster.open_image(out_of(place.folder)).labels == ()
    steps.go_on()
    assert place.run(resume=True).shape == SHAPE
    assert not steps.done
    place.assert_done()


# Nothing to go on with


# Options with which each case makes something else.
OTHER: dict[str, dict[str, Any]] = {
    "raw copy": {"chunks": 8},
    "decoded copy": {"dtype": "uint32"},
    "copy of a group": {"zarr_format": 3},
    "copy over another": {"compression": "gzip"},
    "copy into a store": {"dtype": "float64"},
    "downsample": {"method": "max"},
    "write_image": {"scale": 0.25},
    "write_image over another": {"scale": 0.25},
    "write_labels": {"colors": {1: (255, 0, 0)}},
    "pyramid": {"method": "max"},
    "pyramid again": {"method": "min"},
}


def test_resume_with_nothing_to_go_on_with_begins_anew(place: Place, steps: Steps) -> None:
    steps.go_on()
    place.run(resume=True)
    assert steps.done["written"] == place.case.writes
    place.assert_done()


def test_resume_of_what_is_complete_does_nothing_again(place: Place, steps: Steps) -> None:
    place.run()
    steps.go_on()
    for options in ({}, {"overwrite": True}, {"overwrite": True, "verbose": True}):
        made = place.run(resume=True, **options)
        assert made is not None or place.case is CASES["copy of a group"]
        # A patch leaves no trace in what it changes, and is made again.
        assert not steps.done or place.case.patches
        place.assert_done()


@pytest.mark.parametrize("name", OTHER)
def test_resume_of_what_is_complete_but_other_is_no_resume(name: str, tmp_path: Path) -> None:
    place = place_of(name, tmp_path)
    place.run()
    with pytest.raises((OutputExistsError, ResumeError)):
        place.run(resume=True, overwrite=False, **OTHER[name])
    place.assert_done()


def test_what_a_patch_has_changed_is_complete_no_more(tmp_path: Path) -> None:
    place = place_of("raw copy", tmp_path)
    place.run()
    blockbuster.copy(noise(7), out_of(place.folder), block_ids=[4], overwrite=True)
    place.run(resume=True, overwrite=True)
    place.assert_done()


# Damage


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def empty(content: bytes) -> bytes:
    return b""


def zeroed(content: bytes) -> bytes:
    return bytes(len(content))


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def stop(place: Place, steps: Steps, call: int = 4) -> int:
    """Stop a run while it writes a tile; returns how many are yet to be written."""
    steps.stop_at("written", call)
    with pytest.raises(TileError):
        place.run()
    left = place.case.writes - steps.done["kept"]
    steps.go_on()
    return left


@pytest.mark.parametrize("tear", [truncated, empty, zeroed, flipped])
@pytest.mark.parametrize("name", ["raw copy", "write_image", "pyramid", "copy of some tiles"])
def test_a_tile_whose_record_is_torn_is_made_again(
    name: str, tear: Callable[[bytes], bytes], tmp_path: Path, steps: Steps
) -> None:
    place = place_of(name, tmp_path)
    left = stop(place, steps)
    record = sorted(place.stages[0].rglob("*.tile"))[1]
    record.write_bytes(tear(record.read_bytes()))
    place.run(resume=True)
    assert steps.done["written"] == left + 1
    place.assert_done()


def test_a_run_whose_incomplete_output_is_gone_begins_anew(place: Place, steps: Steps) -> None:
    stop(place, steps)
    (partial,) = place.to.glob("*.partial")
    shutil.rmtree(partial)
    place.run(resume=True)
    assert steps.done["written"] == place.case.writes
    place.assert_done()


def test_a_run_whose_scratch_data_are_gone_begins_anew(place: Place, steps: Steps) -> None:
    stop(place, steps)
    shutil.rmtree(place.stages[0])
    (partial,) = place.to.glob("*.partial")
    place.run(resume=True)
    assert steps.done["written"] == place.case.writes
    # Whoever deletes the one is told to delete the other as well.
    if partial.exists():
        shutil.rmtree(partial)
    place.assert_done()


@pytest.mark.parametrize("name", ["raw copy", "decoded copy"])
def test_half_a_chunk_is_not_taken_for_a_whole_one(
    name: str, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = place_of(name, tmp_path)
    stop(place, steps, call=5)
    (partial,) = place.to.glob("*.partial")
    noted = {path.name for path in place.stages[0].rglob("*.tile")}
    assert len(noted) == 4
    unfinished = [n for n in range(place.case.tiles) if f"{n:06d}.tile" not in noted and n != 3]
    row, column = divmod(unfinished[0], 3)
    chunk = partial / "c" / str(row) / str(column)
    chunk.parent.mkdir(parents=True, exist_ok=True)
    chunk.write_bytes(b"torn")
    place.run(resume=True)
    if name == "raw copy":
        place.assert_done()
    np.testing.assert_array_equal(zarr.open_array(out_of(place.folder), mode="r")[:], noise(1))


# Another run


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("raw copy", {"chunks": 8}, "stored"),
        ("raw copy", {"compression": "gzip"}, "stored"),
        ("raw copy", {"zarr_format": 2}, "stored"),
        ("raw copy", {"shards": 32, "tile_shape": (32, 32)}, "stored"),
        ("raw copy", {"dtype": "int32"}, "function"),
        ("raw copy", {"dtype": "uint8", "casting": "clip"}, "function"),
        ("raw copy", {"tile_shape": (32, 16)}, "tiles"),
        ("raw copy", {"block_ids": [0, 1]}, "block_ids"),
        ("raw copy", {"mask": some_mask()}, "mask"),
        ("decoded copy", {"chunks": 4}, "stored"),
        ("copy of a group", {"chunks": 8}, "stored"),
        ("downsample", {"method": "max"}, "function"),
        ("downsample", {"method": None, "order": 1}, "function"),
        ("downsample", {"method": None, "order": 1, "anti_aliasing": True}, "function"),
        ("write_image", {"scale": 0.25}, "metadata"),
        ("write_image", {"unit": "nm"}, "metadata"),
        ("write_image", {"translation": 3.0}, "metadata"),
        ("write_image", {"name": "another"}, "metadata"),
        ("write_image", {"version": "0.4"}, "stored"),
        ("write_image", {"method": "max"}, "function"),
        ("write_image", {"scale_factor": (1, 2)}, "function"),
        ("write_image", {"n_levels": 4}, "function of 3"),
        ("write_image", {"n_levels": 2}, "function of 2"),
        ("write_image", {"chunks": 8}, "stored of 0"),
        ("write_labels", {"colors": {1: (255, 0, 0)}}, "metadata"),
        ("write_labels", {"properties": [{"label-value": 1, "area": 5}]}, "metadata"),
        ("write_labels", {"method": "max"}, "function"),
        ("write_labels", {"n_levels": 2}, "function of 2"),
        ("pyramid", {"method": "max"}, "function"),
        ("pyramid", {"n_levels": 2}, "function of 2"),
        ("pyramid", {"scale_factor": 4}, "function"),
        ("masked copy", {"mask": some_mask(6)}, "mask"),
        ("masked copy", {"mask": None, "block_ids": [1]}, "block_ids"),
        ("copy of some tiles", {"block_ids": [1, 3, 4]}, "block_ids"),
        ("masked downsample", {"method": "max"}, "function"),
    ],
)
def test_resuming_with_other_options_is_refused(
    name: str, options: dict[str, Any], named: str, tmp_path: Path, steps: Steps
) -> None:
    place = place_of(name, tmp_path)
    left = stop(place, steps)
    before = digest(place.to)
    with pytest.raises(ResumeError) as caught:
        place.run(resume=True, **options)
    assert f"{named}" in str(caught.value)
    assert " was " in str(caught.value)
    assert str(place.stages[0]) in str(caught.value)
    assert not steps.done
    assert digest(place.to) == before
    place.run(resume=True)
    assert steps.done["written"] == left
    place.assert_done()


@pytest.mark.parametrize("name", ["raw copy", "downsample", "write_image", "write_labels", "copy of some tiles"])
def test_resuming_with_another_source_is_refused(name: str, tmp_path: Path, steps: Steps) -> None:
    place = place_of(name, tmp_path)
    stop(place, steps)
    zarr.open_array(place.folder / "source.zarr", mode="r+")[:16, 16:32] = 3
    with pytest.raises(ResumeError, match=r"image.* was "):
        place.run(resume=True)
    assert place.store == place.before


def test_resuming_a_pyramid_of_an_image_that_changed_is_refused(tmp_path: Path, steps: Steps) -> None:
    place = place_of("pyramid", tmp_path)
    stop(place, steps)
    zarr.open_array(out_of(place.folder), path="0", mode="r+")[:16, 16:32] = 3
    with pytest.raises(ResumeError, match=r"image.* was "):
        place.run(resume=True)


def test_resuming_another_factor_or_operation_is_refused(tmp_path: Path, steps: Steps) -> None:
    place = place_of("downsample", tmp_path)
    stop(place, steps)
    source, to = place.folder / "source.zarr", out_of(place.folder)
    with pytest.raises(ResumeError, match=r"function was .*tiles was "):
        blockbuster.downsample(source, 4, method="mean", write_to=to, resume=True, overwrite=True)
    with pytest.raises(ResumeError, match="operation was downsample, is copy"):
        blockbuster.copy(source, to, resume=True, overwrite=True)


def test_options_that_change_nothing_do_not_hinder_resuming(
    place: Place, steps: Steps, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[int, int]] = []
    left = stop(place, steps)
    place.run(resume=True, verbose=True, progress=lambda now: seen.append((now.done, now.total)), overwrite=True)
    assert steps.done["written"] == left
    assert seen[-1] == (place.case.tiles, place.case.tiles)
    place.assert_done()


def test_what_others_changed_while_a_patch_was_stopped_stays(tmp_path: Path, steps: Steps) -> None:
    place = place_of("masked copy", tmp_path)
    stop(place, steps, call=7)
    inside = some_mask()
    blockbuster.copy(noise(8), out_of(place.folder), mask=~inside, overwrite=True)
    place.run(resume=True)
    stored = zarr.open_array(out_of(place.folder), mode="r")[:]
    np.testing.assert_array_equal(stored, np.where(inside, noise(1), noise(8)))


# Killed


class Killing:
    """Another process, whose forks do cases until they kill themselves."""

    def __init__(self, process: subprocess.Popen[str], said: Path) -> None:
        self._process = process
        self._said = said

    def __call__(self, name: str, step: int, folder: Path, **options: Any) -> bool:
        """Do a case until it is at a step; returns whether it got there."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, step, str(folder), options]), file=self._process.stdin, flush=True)
        ended = int(self._process.stdout.readline())
        assert ended in (0, -signal.SIGKILL), self.last_words
        assert ended or not self.last_words, self.last_words
        return ended != 0

    @property
    def last_words(self) -> str:
        """At which step the last was killed."""
        said = self._said.read_text()
        os.truncate(self._said, 0)
        return said


@pytest.fixture(scope="module")
def run_until_killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killing]:
    """Runs in other processes."""
    said = tmp_path_factory.mktemp("killed") / "stderr"
    with (
        open(said, "a") as file,
        subprocess.Popen(
            [sys.executable, "-m", "tests.drivers.crashing"],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        ) as process,
    ):
        yield Killing(process, said)


@pytest.mark.slow
def test_a_run_killed_at_any_step_goes_on_to_the_same_bytes(place: Place, run_until_killed: Killing) -> None:
    wrong = []
    step = 1 + list(CASES).index(place.name) % STRIDE
    while run_until_killed(place.name, step, place.folder):
        at = run_until_killed.last_words
        for left in place.stages:
            # As if it were long ago: a stage that is being made just now is left alone.
            os.utime(left, (0, 0))
        try:
            place.run(resume=True)
            if differences := place.differences:
                wrong.append(f"step {step}, {at}: {differences}")
        except blockbuster.errors.BlockbusterError as error:
            wrong.append(f"step {step}, {at}: {error!r}")
        place.restore()
        step += STRIDE
    assert step > 20
    assert not wrong, "\n".join(wrong)
