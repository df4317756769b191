"""Stages: who uses one, who finds it again, who removes it; runs side by side."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import scipy.ndimage
import zarr
from numpy.typing import NDArray

import blockbuster
from blockbuster import OutputError, OutputExistsError, ResumeError, TileError
from blockbuster.ownership import find_stage, stopped_stages, sweep
from blockbuster.stage import Stage
from tests.drivers.waiting import Waiting, wait_for
from tests.helpers import Recording, assert_same_objects, components, digest, leftovers

ROOT = Path(__file__).parents[1]
TILE = 16
SIDE = 64
N_TILES = (SIDE // TILE) ** 2


@pytest.fixture(scope="module")
def image() -> NDArray[Any]:
    """Noise."""
    return np.random.default_rng(4).random((SIDE, SIDE)) < 0.5


@pytest.fixture
def folder(tmp_path: Path, image: NDArray[Any]) -> Path:
    """A folder with the image and a folder for the calls of a function."""
    folder = tmp_path / "data"
    folder.mkdir()
    zarr.create_array(folder / "image.zarr", data=image, chunks=(TILE, TILE))
    (folder / "calls").mkdir()
    return folder


@pytest.fixture
def recording(folder: Path) -> Recording:
    """A function whose calls are counted."""
    return Recording(folder / "calls")


@pytest.fixture
def client(local_cluster: str) -> Iterator[Any]:
    """A client of the cluster."""
    from distributed import Client

    with Client(local_cluster) as client:
        yield client


def stages(folder: Path) -> list[Path]:
    """The stages in a folder."""
    return sorted(folder.glob("*.blockbuster-????????"))


def eventually(true: Callable[[], bool]) -> bool:
    """Whether something comes true: workers let go of what they hold a little after the client does."""
    for attempt in range(250):
        if attempt % 25 == 0:
            gc.collect()
        if true():
            return True
        time.sleep(0.02)
    return False


def fail(block: NDArray[Any]) -> NDArray[Any]:
    raise ValueError("out of order")


# Schedulers on which who holds a stage differs.
in_and_out_of_process = pytest.mark.parametrize("scheduler", ["threads", "distributed"], indirect=True)


# Runs side by side


@contextlib.contextmanager
def waiting_run(folder: Path, name: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A run in another process, which is in its first tile now."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.drivers.waiting", str(folder), name, json.dumps(options)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> None:
    """Wait until the run in the other process has succeeded."""
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


@pytest.mark.parametrize(
    ("first", "second"),
    [
        pytest.param({"compute": True}, {"compute": True}, id="in memory"),
        pytest.param({"write_to": "a.zarr"}, {"write_to": "b.zarr"}, id="two stores"),
        pytest.param({"write_to": "a.zarr"}, {"write_to": "a.zarr", "output_component": "b"}, id="one store"),
        pytest.param(
            {"write_to": "a.zarr", "overwrite": True}, {"write_to": "a.zarr", "overwrite": True}, id="one array"
        ),
    ],
)
def test_two_processes_in_one_folder_are_both_exact(
    first: dict[str, Any], second: dict[str, Any], folder: Path, image: NDArray[Any]
) -> None:
    with (
        waiting_run(folder, "first", **_within(folder, first)) as one,
        waiting_run(folder, "second", **_within(folder, second)) as other,
    ):
        wait_for(folder / "first.waiting")
        wait_for(folder / "second.waiting")
        assert len(stages(folder)) == 2
        (folder / "go").touch()
        finish(one)
        finish(other)
    for name in ("first", "second"):
        assert_same_objects(np.load(folder / f"{name}.npy"), scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


def _within(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    return {k: str(folder / v) if k == "write_to" else v for k, v in options.items()}


def test_the_second_run_to_one_array_does_not_replace_the_first_unasked(folder: Path, image: NDArray[Any]) -> None:
    first_done = []

    def run_another_first(block: NDArray[Any]) -> NDArray[Any]:
        if not first_done:
            first_done.append(blockbuster.label(folder / "image.zarr", write_to=folder / "labels.zarr"))
        return components(block)

    with dask.config.set(scheduler="synchronous"), pytest.raises(OutputExistsError, match="overwrite=True"):
        blockbuster.tile_process(folder / "image.zarr", run_another_first, write_to=folder / "labels.zarr")
    np.testing.assert_array_equal(first_done[0], scipy.ndimage.label(image)[0])


def test_a_commit_within_the_commit_of_another_run_loses_nothing(
    synchronous: None, folder: Path, image: NDArray[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    to = folder / "labels.zarr"
    blockbuster.label(folder / "image.zarr", write_to=to, threshold=2)
    rename = os.rename
    inner = []

    def rename_and_run_another(source: Any, target: Any) -> None:
        rename(source, target)
        if str(target).endswith(".replaced") and not inner:
            inner.append(None)
            blockbuster.label(folder / "image.zarr", write_to=to, overwrite=True)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", rename_and_run_another)
        with contextlib.suppress(OutputError):
            blockbuster.label(folder / "image.zarr", write_to=to, overwrite=True, connectivity=2)
    assert inner
    found = zarr.open_array(to / "labels", mode="r")[:]
    expected = [scipy.ndimage.label(image)[0], scipy.ndimage.label(image, np.ones((3, 3)))[0]]
    assert any(np.array_equal(found, labels) for labels in expected)
    labels = blockbuster.label(folder / "image.zarr", write_to=to, overwrite=True, connectivity=2, resume=True)
    np.testing.assert_array_equal(labels, expected[1])
    assert leftovers(folder) == []


# Runs that go on


def test_a_run_that_goes_on_in_another_process_cannot_be_resumed(folder: Path, image: NDArray[Any]) -> None:
    to = str(folder / "labels.zarr")
    fn = Waiting(folder, "first")
    with waiting_run(folder, "first", write_to=to) as process, dask.config.set(scheduler="synchronous"):
        wait_for(folder / "first.waiting")
        (stage,) = stages(folder)
        with pytest.raises(ResumeError, match=f"{stage} is still going on.*without resume=True"):
            blockbuster.tile_process(folder / "image.zarr", fn, write_to=to, resume=True)
        (folder / "go").touch()
        finish(process)
        labels = blockbuster.tile_process(folder / "image.zarr", fn, write_to=to, resume=True)
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


def test_a_run_that_was_killed_can_be_resumed_at_once(folder: Path, image: NDArray[Any]) -> None:
    fn = Waiting(folder, "first")
    with waiting_run(folder, "first", compute=True) as process:
        wait_for(folder / "first.waiting")
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    (folder / "go").touch()
    labels = blockbuster.tile_process(folder / "image.zarr", fn, resume=True, compute=True)
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


refusals: list[ResumeError] = []


def resume_too(image: str, block: NDArray[Any]) -> NDArray[Any]:
    """Label a block, but try to resume the run first."""
    if len(refusals) < N_TILES:
        try:
            blockbuster.tile_process(image, functools.partial(resume_too, image), compute=True, resume=True)
        except ResumeError as error:
            refusals.append(error)
    return components(block)


@pytest.mark.parametrize("among", ["synchronous", "threads"])
def test_a_run_cannot_be_resumed_within_itself(among: str, folder: Path, image: NDArray[Any]) -> None:
    refusals.clear()
    path = str(folder / "image.zarr")
    with dask.config.set(scheduler=among):
        labels = blockbuster.tile_process(path, functools.partial(resume_too, path), compute=True)
    assert len(refusals) == N_TILES
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    assert leftovers(folder) == []


@in_and_out_of_process
def test_the_run_of_a_living_lazy_array_cannot_be_resumed(scheduler: str, folder: Path, recording: Recording) -> None:
    labels = blockbuster.tile_process(folder / "image.zarr", recording)
    labels[:4].compute()
    with pytest.raises(ResumeError, match="lazy array"):
        blockbuster.tile_process(folder / "image.zarr", recording, resume=True)
    del labels
    assert eventually(lambda: leftovers(folder) == [])


def test_a_new_run_beside_a_running_one_is_warned_of_nothing(
    folder: Path, recording: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    labels = blockbuster.tile_process(folder / "image.zarr", recording)
    labels.compute()
    blockbuster.tile_process(folder / "image.zarr", recording).compute()
    assert not [record for record in caplog.records if record.name == "blockbuster"]
    del labels


# Looking for stages while others come and go


@contextlib.contextmanager
def looked_at(folder: Path, manifest: dict[str, str]) -> Iterator[None]:
    """Let other threads look for stages all the while, as runs do when they start."""
    stop = threading.Event()

    def look() -> int:
        n_looks = 0
        while n_looks == 0 or not stop.is_set():
            sweep(folder, manifest["target"])
            stopped_stages(folder, manifest)
            with contextlib.suppress(ResumeError):
                find_stage(folder, {**manifest, "image": "another one"})
            n_looks += 1
        return n_looks

    with ThreadPoolExecutor(3) as pool:
        lookers = [pool.submit(look) for _ in range(3)]
        try:
            yield
        finally:
            stop.set()
    assert all(looker.result() > 0 for looker in lookers)


@pytest.fixture
def dead(synchronous: None, folder: Path) -> Stage:
    """A stage like those that killed processes leave: with a holder that holds no more."""
    blockbuster.label(folder / "image.zarr", tile_shape=(SIDE, SIDE), compute=True, keep_stage=True)
    (path,) = stages(folder)
    (path / "holders" / "somebody").touch()
    return Stage(str(path))


def test_a_stage_that_vanishes_while_it_is_looked_at_is_not_there(
    folder: Path, dead: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, manifest = Stage.manifest, dead.manifest()

    def remove_first(stage: Stage) -> Any:
        stage.remove()
        return read(stage)

    assert stopped_stages(folder, manifest) == [dead]
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "manifest", remove_first)
        assert find_stage(folder, manifest) is None
    assert stopped_stages(folder, manifest) == []
    assert leftovers(folder) == []


def test_others_that_look_for_stages_disturb_no_run(folder: Path, dead: Stage, image: NDArray[Any]) -> None:
    with looked_at(folder, dead.manifest()):
        for _ in range(20):
            labels = blockbuster.label(folder / "image.zarr", tile_shape=(SIDE, SIDE), compute=True)
            np.testing.assert_array_equal(labels, scipy.ndimage.label(image)[0])
    assert stages(folder) == [Path(dead.path)]


def test_others_that_look_for_stages_disturb_none_that_is_resumed(
    folder: Path, dead: Stage, image: NDArray[Any]
) -> None:
    with looked_at(folder, dead.manifest()):
        for _ in range(20):
            labels = blockbuster.label(
                folder / "image.zarr", tile_shape=(SIDE, SIDE), compute=True, keep_stage=True, resume=True
            )
            np.testing.assert_array_equal(labels, scipy.ndimage.label(image)[0])
            Path(dead.path, "holders", "somebody").touch()
    assert stages(folder) == [Path(dead.path)]


@pytest.mark.parametrize(
    "name", ["image[1].zarr", "image*.zarr", "image ?.zarr", "ímage.zarr", "image.zarr.blockbuster"]
)
def test_names_of_any_kind_are_found_again(name: str, synchronous: None, folder: Path, recording: Recording) -> None:
    (folder / "image.zarr").rename(folder / name)
    blockbuster.tile_process(folder / name, recording, compute=True, keep_stage=True)
    blockbuster.tile_process(folder / name, recording, compute=True, resume=True)
    assert recording.n_calls == N_TILES
    assert leftovers(folder) == []


# Lazy arrays


def test_a_lazy_array_dropped_before_computing_leaves_nothing(scheduler: str, folder: Path, tmp_path: Path) -> None:
    before = digest(tmp_path)
    labels = blockbuster.tile_process(folder / "image.zarr", components)
    del labels
    assert eventually(lambda: leftovers(tmp_path) == [])
    assert digest(tmp_path) == before


def test_a_lazy_array_computed_again_calls_fn_no_more(scheduler: str, folder: Path, recording: Recording) -> None:
    labels = blockbuster.tile_process(folder / "image.zarr", recording)
    first = labels[:4].compute()
    again = labels.compute()
    assert recording.n_calls == N_TILES
    np.testing.assert_array_equal(first, again[:4])
    assert_same_objects(again, labels.compute())
    assert recording.n_calls == N_TILES


@in_and_out_of_process
def test_the_stage_lives_as_long_as_any_array_made_of_it(scheduler: str, folder: Path, recording: Recording) -> None:
    labels = blockbuster.tile_process(folder / "image.zarr", recording)
    part = labels[:4] + 1
    labels.compute()
    del labels
    gc.collect()
    assert part.max().compute() > 1
    assert recording.n_calls == N_TILES
    del part
    assert eventually(lambda: leftovers(folder) == [])


@pytest.mark.parametrize("scheduler_first", ["threads", "distributed"])
def test_a_lazy_array_may_be_computed_on_another_scheduler(
    scheduler_first: str, folder: Path, recording: Recording, client: Any, image: NDArray[Any]
) -> None:
    options = ["threads", "distributed"] if scheduler_first == "threads" else ["distributed", "threads"]
    with dask.config.set(scheduler=options[0]):
        labels = blockbuster.tile_process(folder / "image.zarr", recording)
    for _ in range(2):
        with dask.config.set(scheduler=options[1]):
            assert_same_objects(labels.compute(), scipy.ndimage.label(image)[0])
    assert recording.n_calls == N_TILES
    del labels
    assert eventually(lambda: leftovers(folder) == [])


def test_a_lazy_array_that_failed_leaves_nothing_once_it_is_dropped(scheduler: str, folder: Path) -> None:
    labels = blockbuster.tile_process(folder / "image.zarr", fail)
    with pytest.raises(TileError):
        labels.compute()
    del labels
    if scheduler == "distributed":
        # Workers keep the frames of the last error until they do something else.
        blockbuster.label(folder / "image.zarr", compute=True)
    assert eventually(lambda: leftovers(folder) == [])


@in_and_out_of_process
@pytest.mark.parametrize("rebound", [False, True])
def test_a_persisted_array_computes_and_leaves_nothing(
    rebound: bool, scheduler: str, folder: Path, recording: Recording, image: NDArray[Any]
) -> None:
    labels = blockbuster.tile_process(folder / "image.zarr", recording)
    if rebound:
        labels = labels.persist()
        gc.collect()
        persisted = labels
    else:
        persisted = labels.persist()
    assert_same_objects(persisted.compute(), scipy.ndimage.label(image)[0])
    assert recording.n_calls == N_TILES
    del labels, persisted
    assert eventually(lambda: leftovers(folder) == [])


def test_futures_of_a_dropped_array_compute_and_leave_nothing(
    client: Any, folder: Path, recording: Recording, image: NDArray[Any]
) -> None:
    future = client.compute(blockbuster.tile_process(folder / "image.zarr", recording))
    gc.collect()
    assert_same_objects(future.result(), scipy.ndimage.label(image)[0])
    assert recording.n_calls == N_TILES
    del future
    assert eventually(lambda: leftovers(folder) == [])


@in_and_out_of_process
def test_two_lazy_arrays_of_one_image_have_a_stage_each(scheduler: str, folder: Path, image: NDArray[Any]) -> None:
    faces = blockbuster.label(folder / "image.zarr")
    corners = blockbuster.label(folder / "image.zarr", connectivity=2)
    made = dask.compute(faces, corners)
    assert len(stages(folder)) == 2
    np.testing.assert_array_equal(made[0], scipy.ndimage.label(image)[0])
    np.testing.assert_array_equal(made[1], scipy.ndimage.label(image, np.ones((3, 3)))[0])
    del faces
    assert eventually(lambda: len(stages(folder)) == 1)
    np.testing.assert_array_equal(corners.compute(), made[1])


EXITS = {
    "end": "",
    "error": "raise SystemError('broken')",
    "exit": "raise SystemExit(3)",
    "never computed": "",
}


@pytest.mark.parametrize("how", EXITS)
def test_the_end_of_the_interpreter_removes_stages_of_living_arrays(how: str, folder: Path) -> None:
    script = folder.parent / "script.py"
    compute = "" if how == "never computed" else "labels[:4].compute(); assert glob.glob('*.blockbuster-*')"
    script.write_text(
        f"import blockbuster, glob\nlabels = blockbuster.label('image.zarr')\n{compute}\nprint('here')\n{EXITS[how]}\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "here\n", done.stderr
    assert leftovers(folder) == []


@pytest.mark.slow
def test_the_end_of_the_interpreter_removes_stages_of_arrays_on_a_cluster(folder: Path) -> None:
    script = folder.parent / "script.py"
    script.write_text(
        "import blockbuster, glob\n"
        "if __name__ == '__main__':\n"
        "    client, cluster = blockbuster.make_local_cluster(n_workers=1)\n"
        "    labels = blockbuster.label('image.zarr')\n"
        "    labels[:4].compute()\n"
        "    assert glob.glob('*.blockbuster-*')\n"
        "    persisted = blockbuster.label('image.zarr').persist()\n"
        "    print(int(persisted.max().compute()))\n"
    )
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
    assert leftovers(folder) == []


# Where scratch data lie


@pytest.mark.parametrize(
    ("scheduler", "kind"),
    [("synchronous", "memory"), ("threads", "lazy"), ("processes", "store"), ("distributed", "lazy")],
    indirect=["scheduler"],
)
def test_scratch_data_go_to_stage_dir_only(
    kind: str, scheduler: str, folder: Path, tmp_path: Path, image: NDArray[Any]
) -> None:
    scratch = tmp_path / "scratch" / "of mine"
    options: dict[str, Any] = {"memory": {"compute": True}, "lazy": {}, "store": {"write_to": folder / "labels.zarr"}}[
        kind
    ]
    seeing = Seeing(tmp_path, folder / "calls")
    labels = blockbuster.tile_process(folder / "image.zarr", seeing, stage_dir=scratch, **options)
    assert_same_objects(labels, scipy.ndimage.label(image)[0])
    for seen in seeing.all_seen():
        assert [name for name in seen if name.startswith("scratch/of mine/")]
        # The output in the making lies beside its store: it is renamed into its place.
        others = [name for name in seen if not name.startswith(("scratch", "data/calls", "data/image.zarr"))]
        assert not [name for name in others if name.count("/") <= 1 and "labels.zarr" not in name and name != "data"]
        assert kind == "store" or not [name for name in others if "labels.zarr" in name]
    assert not os.listdir(tempfile.gettempdir())
    del labels
    assert eventually(lambda: not os.listdir(scratch))


class Seeing:
    """An `fn` that notes what lies under a folder when it is called."""

    def __init__(self, under: Path, notes: Path) -> None:
        self.under, self.notes = under, notes

    def __call__(self, block: NDArray[Any]) -> NDArray[Any]:
        seen = [
            str(path.relative_to(self.under))
            for path in self.under.rglob("*")
            if not path.is_relative_to(self.under / "system-tmp") or path.name != "system-tmp"
        ]
        (self.notes / f"{time.monotonic_ns()}-{os.getpid()}.json").write_text(json.dumps(seen))
        return components(block)

    def all_seen(self) -> list[list[str]]:
        return [json.loads(path.read_text()) for path in sorted(self.notes.glob("*.json"))]


def test_a_kept_stage_is_resumed_without_a_call(synchronous: None, folder: Path, recording: Recording) -> None:
    first = blockbuster.tile_process(folder / "image.zarr", recording, compute=True, keep_stage=True)
    assert len(stages(folder)) == 1
    again = blockbuster.tile_process(folder / "image.zarr", recording, compute=True, resume=True)
    assert recording.n_calls == N_TILES
    np.testing.assert_array_equal(first, again)
    assert leftovers(folder) == []


def test_a_failed_run_without_finished_tiles_keeps_its_stage_if_asked_to(synchronous: None, folder: Path) -> None:
    with pytest.raises(TileError):
        blockbuster.tile_process(folder / "image.zarr", fail, compute=True, keep_stage=True)
    assert len(stages(folder)) == 1


def test_a_stage_that_is_kept_outlives_a_resumed_call(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "image.zarr", data=np.eye(16, dtype=np.uint8), chunks=(8, 8))
    for resume in (False, True):
        blockbuster.label(tmp_path / "image.zarr", write_to=tmp_path / "o.zarr", keep_stage=True, resume=resume)
        assert len(list(tmp_path.glob("o.zarr.labels.blockbuster-????????"))) == 1
