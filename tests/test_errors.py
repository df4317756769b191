"""Errors: early wherever possible, else with the tile; with what was asked, the rule and the remedy."""

from __future__ import annotations

import pickle
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import blockbuster
from blockbuster import (
    BlockbusterError,
    Contact,
    GeometryError,
    ImageError,
    LabelOverflowError,
    Overlapping,
    ParameterError,
    SchedulerError,
    StageError,
    TileError,
    Touching,
    Where,
    tile_process,
)
from tests.helpers import (
    Recording,
    assert_same_objects,
    components,
    digest,
    leftovers,
    nothing_computed,
    write_ome_zarr,
)

synchronous = pytest.mark.usefixtures("synchronous")


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    made = tmp_path / "calls"
    made.mkdir()
    return Recording(made)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    return made


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return (np.random.default_rng(0).random((8, 12)) > 0.5).astype(np.uint8)


# The family


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (blockbuster.GeometryError, ValueError),
        (blockbuster.ParameterError, ValueError),
        (blockbuster.ImageError, ValueError),
        (blockbuster.OutputExistsError, FileExistsError),
        (blockbuster.OutputError, OSError),
        (blockbuster.StageError, OSError),
        (blockbuster.ResumeError, ValueError),
        (blockbuster.SchedulerError, RuntimeError),
        (blockbuster.CapacityError, RuntimeError),
        (blockbuster.LabelOverflowError, OverflowError),
        (blockbuster.TileError, RuntimeError),
    ],
)
def test_errors_are_children_of_the_builtin_that_they_refine(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, BlockbusterError)
    assert issubclass(error, builtin)


# Before the first task


def three_axes(shape: tuple[int, ...], dtype: Any) -> tuple[int, ...]:
    return (4, 4, 4)


def nothing(shape: tuple[int, ...], dtype: Any) -> None:
    return None


REFUSED: list[Any] = [
    # Tiles
    ({"tile_shape": "big"}, ParameterError, ["tile_shape 'big' is unknown", "None", "'auto'", "(shape, dtype)"]),
    ({"tile_shape": (4,)}, GeometryError, ["tile_shape (4,) has 1 entries", "2 axes (8, 12)", "one per axis"]),
    ({"tile_shape": (4, 0)}, GeometryError, ["tile_shape (4, 0) has an entry below 1", "at least 1"]),
    ({"tile_shape": (-4, 4)}, GeometryError, ["tile_shape (-4, 4) has an entry below 1"]),
    ({"tile_shape": (4.0, 4)}, GeometryError, ["tile_shape (4.0, 4) is not an int or one int per axis", "(8, 12)"]),
    ({"tile_shape": (True, 4)}, GeometryError, ["tile_shape (True, 4) is not an int"]),
    ({"tile_shape": three_axes}, GeometryError, ["tile_shape (4, 4, 4) has 3 entries", "2 axes (8, 12)"]),
    ({"tile_shape": nothing}, GeometryError, ["tile_shape None is not an int or one int per axis", "(8, 12)"]),
    # Overlap
    ({"overlap": -1}, GeometryError, ["overlap (-1, -1) has an entry below 0", "at least 0"]),
    ({"overlap": (0, -2)}, GeometryError, ["overlap (0, -2) has an entry below 0"]),
    ({"overlap": (1, 2, 3)}, GeometryError, ["overlap (1, 2, 3) has 3 entries", "2 axes (8, 12)", "Give one number"]),
    ({"overlap": 1.5}, GeometryError, ["overlap 1.5 is not an int or one int per axis"]),
    ({"overlap": "4"}, GeometryError, ["overlap '4' is not an int"]),
    ({"overlap": None}, GeometryError, ["overlap None is not an int"]),
    ({"overlap": True}, GeometryError, ["overlap True is not an int"]),
    # Labels
    ({"dtype": "float32"}, ParameterError, ["dtype float32 cannot hold labels", "integer dtype", "'int32'"]),
    ({"dtype": bool}, ParameterError, ["dtype bool cannot hold labels", "integer dtype"]),
    ({"dtype": "potato"}, ParameterError, ["dtype", "potato", "integer dtype"]),
    ({"dtype": None}, ParameterError, ["dtype", "integer dtype"]),
    # Tiles to work on
    ({"block_ids": [0, 1]}, GeometryError, ["block_ids [0, 1]", "1 tiles (1, 1)", "0..0", "row-major"]),
    (
        {"block_ids": [-1], "tile_shape": (4, 4)},
        GeometryError,
        ["block_ids [-1] are not all numbers of tiles", "6 tiles (2, 3)", "0..5"],
    ),
    ({"block_ids": [0.5]}, GeometryError, ["block_ids [0.5]", "1 tiles"]),
    ({"block_ids": [True]}, GeometryError, ["block_ids [True]", "1 tiles"]),
    ({"block_ids": ["a"]}, GeometryError, ["block_ids ['a']", "1 tiles"]),
    # Rules
    (
        {"merge": "touch"},
        ParameterError,
        ["merge 'touch' is unknown", "'touching', 'iou', 'contact', None", "function"],
    ),
    ({"merge": 3}, ParameterError, ["merge 3 is unknown", "Choose one of"]),
    ({"merge": True}, ParameterError, ["merge True is unknown"]),
    ({"merge": Touching}, ParameterError, ["Touching", "Touching()"]),
    ({"merge": Overlapping, "overlap": 1}, ParameterError, ["Overlapping", "Overlapping()"]),
    ({"merge": ["touching"]}, ParameterError, ["merge has 1 entries", "2 axes", "Give one rule, or one per axis"]),
    ({"merge": ["touching", "typo"]}, ParameterError, ["merge 'typo' is unknown"]),
    ({"merge": []}, ParameterError, ["merge has 0 entries", "2 axes"]),
    ({"merge": "iou"}, ParameterError, ["merge='iou'", "overlap (0, 0) is 0", "overlap >= 1", "merge='contact'"]),
    ({"merge": Overlapping()}, ParameterError, ["overlap (0, 0) is 0 on every axis (0, 1)", "overlap >= 1"]),
    (
        {"merge": Overlapping(axes=(0, 1)), "overlap": (1, 0)},
        ParameterError,
        ["needs an overlap of at least 1 on its axes", "overlap (1, 0) is 0 on (1,)", "Contact"],
    ),
    (
        {"merge": ["iou", "iou"], "overlap": (1, 0)},
        ParameterError,
        ["overlap (1, 0) is 0 on every axis (1,)", "merge='contact'"],
    ),
    ({"merge": Touching(0)}, ParameterError, ["connectivity 0 is not within 1..2", "axes (0, 1)"]),
    ({"merge": Touching(3)}, ParameterError, ["connectivity 3 is not within 1..2", "axes (0, 1)"]),
    ({"merge": Touching(2, axes=(1,))}, ParameterError, ["connectivity 2 is not within 1..1", "axes (1,)"]),
    ({"merge": Touching(1.5)}, ParameterError, ["connectivity 1.5", "1..2"]),  # type: ignore[arg-type]
    ({"merge": Touching("2")}, ParameterError, ["connectivity '2'", "1..2"]),  # type: ignore[arg-type]
    ({"merge": Contact(1)}, ParameterError, ["iou 1 must be at least 0 and below 1"]),
    ({"merge": Contact(-0.1)}, ParameterError, ["iou -0.1 must be at least 0 and below 1"]),
    ({"merge": Overlapping(float("nan")), "overlap": 1}, ParameterError, ["iou nan must be at least 0 and below 1"]),
    ({"merge": Contact("half")}, ParameterError, ["iou 'half'", "at least 0 and below 1"]),  # type: ignore[arg-type]
    ({"merge": Touching(axes=(2,))}, ParameterError, ["axes (2,) of the merge rule", "2 axes"]),
    ({"merge": Contact(axes=(-3,))}, ParameterError, ["axes (-3,) of the merge rule", "2 axes"]),
    ({"merge": Where("iou")}, ParameterError, ["'iou'", "function"]),  # type: ignore[arg-type]
    # Emptiness
    ({"empty_threshold": 3}, ParameterError, ["empty_threshold 3 has no effect without skip_empty=True", "Give both"]),
    ({"empty_threshold": "dim", "skip_empty": True}, ParameterError, ["empty_threshold 'dim'", "number"]),
    ({"empty_threshold": float("nan"), "skip_empty": True}, ParameterError, ["empty_threshold nan", "number"]),
    # Where to
    ({"write_to": 3}, ParameterError, ["write_to 3 is not a path", "path of a zarr store"]),
    (
        {"write_to": "out.zarr", "output_component": "../x"},
        ParameterError,
        ["output_component '../x'", "'labels/cells'"],
    ),
    ({"write_to": "out.zarr", "output_component": None}, ParameterError, ["output_component None", "'labels/cells'"]),
    ({"stage_dir": 3}, ParameterError, ["stage_dir 3 is not a path", "folder"]),
]


def spelled(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={getattr(value, '__name__', repr(value))}" for name, value in options.items())


@pytest.mark.parametrize(("options", "error", "parts"), [pytest.param(*case, id=spelled(case[0])) for case in REFUSED])
@pytest.mark.parametrize("kind", ["numpy", "dask"])
def test_options_that_cannot_be_are_refused_before_the_first_task(
    kind: str,
    options: dict[str, Any],
    error: type[Exception],
    parts: Sequence[str],
    image: NDArray[Any],
    recording: Recording,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    source = image if kind == "numpy" else da.from_array(image, chunks=image.shape)
    with nothing_computed(), pytest.raises(error) as caught:
        tile_process(source, recording, **{"compute": True, **options})
    assert isinstance(caught.value, BlockbusterError)
    for part in parts:
        assert part in str(caught.value)
    assert recording.n_calls == 0
    assert list(folder.iterdir()) == []
    assert leftovers(folder.parent) == []


@pytest.mark.parametrize("fn", [None, 3, "cellpose", np.zeros(3)], ids=["None", "int", "str", "array"])
def test_an_fn_that_cannot_be_called_is_refused(fn: Any, image: NDArray[Any]) -> None:
    with pytest.raises(ParameterError, match=r"fn .* cannot be called\. Give a function of a numpy array that returns"):
        tile_process(image, fn)


def test_a_single_value_is_no_image(recording: Recording) -> None:
    with pytest.raises(GeometryError, match=r"no axes, only one value\. Give an array with at least one axis"):
        tile_process(np.float64(3), recording)


def test_a_level_that_is_no_number_is_refused(recording: Recording, folder: Path) -> None:
    path = write_ome_zarr(folder / "i.zarr", [np.zeros((4, 4))], "yx")
    with pytest.raises(ImageError, match=r"level 'full' was asked for.*levels 0\.\.0"):
        tile_process(path, recording, level="full")  # type: ignore[arg-type]


@pytest.mark.parametrize("scheduler", ["no-such", "distributed"])
def test_an_unknown_scheduler_is_refused(scheduler: str, image: NDArray[Any], recording: Recording) -> None:
    with (
        dask.config.set(scheduler=scheduler),
        pytest.raises(SchedulerError, match=rf"{scheduler}.*cannot be used.*'synchronous', 'threads', 'processes'"),
    ):
        tile_process(image, recording, compute=True)
    assert recording.n_calls == 0


def test_an_fn_that_cannot_be_pickled_is_refused_where_tasks_leave_the_process(
    scheduler: str, image: NDArray[Any], tmp_path: Path
) -> None:
    lock = threading.Lock()

    def locked(block: NDArray[Any]) -> NDArray[Any]:
        with lock:
            return components(block)

    if scheduler in ("synchronous", "threads"):
        assert_same_objects(tile_process(image, locked, tile_shape=(4, 4), compute=True), components(image))
        return
    with pytest.raises(SchedulerError, match=rf"(?s)fn .*locked.* cannot be pickled, which the {scheduler}.*top level"):
        tile_process(image, locked, tile_shape=(4, 4), compute=True)
    assert leftovers(tmp_path) == []


@synchronous
def test_a_stage_dir_that_is_a_file_is_refused(image: NDArray[Any], recording: Recording, folder: Path) -> None:
    (folder / "scratch").write_text("not a folder")
    before = digest(folder)
    with pytest.raises(StageError, match=r"scratch/.*stage_dir="):
        tile_process(image, recording, stage_dir=folder / "scratch", compute=True)
    assert recording.n_calls == 0
    assert digest(folder) == before


@synchronous
def test_a_refused_run_leaves_an_existing_store_alone(
    image: NDArray[Any], recording: Recording, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    zarr.create_group(folder / "s.zarr").create_array("labels", data=image)
    before = digest(folder)
    for options, error, _ in REFUSED:
        target = {"write_to": folder / "s.zarr", "overwrite": True, **options}
        with pytest.raises(error):
            tile_process(image, recording, **target)
    assert digest(folder) == before
    assert recording.n_calls == 0


# What fn returns


def shifted(offset: int, dtype: str) -> Any:
    """`fn` whose ids begin above `offset`."""

    def fn(block: NDArray[Any]) -> NDArray[Any]:
        labels = components(block)
        return np.where(labels > 0, labels.astype(dtype) + np.array(offset, dtype), np.array(0, dtype))

    return fn


@synchronous
@pytest.mark.parametrize("merge", ["touching", "iou", "contact"])
@pytest.mark.parametrize(
    ("offset", "dtype"),
    [
        (0, "uint8"),
        (0, "int8"),
        (200, "uint8"),
        (60000, "uint16"),
        (2**31, "int64"),
        (2**31 - 1, "uint32"),
        (2**53, "int64"),
        (2**62, "int64"),
        (2**63, "uint64"),
        (2**64 - 40, "uint64"),
        (0, ">i4"),
        (2**40, ">u8"),
    ],
)
def test_ids_of_any_size_and_dtype_are_exact(merge: str, offset: int, dtype: str) -> None:
    image = np.zeros((30, 30), np.uint8)
    for y in range(1, 30, 6):
        for x in range(1, 30, 6):
            image[y : y + 4, x : x + 4] = 1
    fn = shifted(offset, dtype)
    labels = tile_process(image, fn, tile_shape=(10, 12), overlap=4, merge=merge, compute=True)
    assert_same_objects(labels, components(image))


@synchronous
def test_neighbouring_ids_beyond_what_floats_tell_apart_stay_apart() -> None:
    image = np.zeros((4, 8), np.uint64)
    image[1, 1:7] = 2**63
    image[2, 1:7] = 2**63 + 1
    labels = tile_process(image, lambda block: block, tile_shape=(4, 4), overlap=1, merge="iou", compute=True)
    assert_same_objects(labels, (image - (image > 0) * np.uint64(2**63 - 1)).astype(int))


@synchronous
def test_more_objects_than_the_dtype_of_each_tile_holds_are_exact() -> None:
    image = np.zeros((80, 80), np.uint8)
    image[::2, ::2] = 1
    labels = tile_process(
        image, lambda block: components(block).astype(np.uint8), tile_shape=(20, 20), overlap=1, compute=True
    )
    assert_same_objects(labels, components(image))
    assert labels.max() == 1600


@synchronous
@pytest.mark.parametrize(
    "form",
    [
        pytest.param(np.asfortranarray, id="Fortran order"),
        pytest.param(lambda a: np.repeat(a, 2, axis=1)[:, ::2], id="a view with strides"),
        pytest.param(lambda a: a[::-1][::-1], id="negative strides"),
        pytest.param(lambda a: np.broadcast_to(a, a.shape), id="read-only"),
    ],
)
def test_labels_of_any_memory_layout_are_taken(form: Any, image: NDArray[Any]) -> None:
    labels = tile_process(
        image, lambda block: form(components(block)), tile_shape=(4, 5), overlap=1, merge="iou", compute=True
    )
    plain = tile_process(image, components, tile_shape=(4, 5), overlap=1, merge="iou", compute=True)
    np.testing.assert_array_equal(labels, plain)


def as_float(block: NDArray[Any]) -> Any:
    return components(block).astype(np.float32)


def as_bool(block: NDArray[Any]) -> Any:
    return block > 0


def as_objects(block: NDArray[Any]) -> Any:
    return components(block).astype(object)


def too_small(block: NDArray[Any]) -> Any:
    return components(block)[1:]


def one_axis_more(block: NDArray[Any]) -> Any:
    return components(block)[None]


def with_count(block: NDArray[Any]) -> Any:
    return components(block), 3


def as_list(block: NDArray[Any]) -> Any:
    return components(block).tolist()


def as_dask(block: NDArray[Any]) -> Any:
    return da.from_array(components(block))


def as_none(block: NDArray[Any]) -> Any:
    return None


def negative(block: NDArray[Any]) -> Any:
    return components(block) - 1


def failing(block: NDArray[Any]) -> Any:
    raise KeyError("the model is not there")


WRONG: list[Any] = [
    (as_float, r"returned float32 of shape \(5, 6\); expected integers of shape \(5, 6\)"),
    (as_bool, r"returned bool of shape \(5, 6\); expected integers"),
    (as_objects, r"returned object of shape \(5, 6\); expected integers"),
    (too_small, r"returned int32 of shape \(4, 6\); expected integers of shape \(5, 6\)"),
    (one_axis_more, r"returned int32 of shape \(1, 5, 6\); expected integers of shape \(5, 6\)"),
    (with_count, r"returned tuple; expected integers of shape \(5, 6\)"),
    (as_list, r"returned list; expected integers"),
    (as_dask, r"returned Array; expected integers"),
    (as_none, r"returned NoneType; expected integers"),
    (negative, r"returned the label -1; labels must not be negative, 0 is background"),
    (failing, r"failed with KeyError: 'the model is not there'"),
]


@synchronous
@pytest.mark.parametrize(("fn", "message"), WRONG, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("to_store", [False, True])
def test_what_fn_must_not_return_is_an_error_that_names_the_tile(
    fn: Any, message: str, to_store: bool, image: NDArray[Any], folder: Path
) -> None:
    image[0, 0] = 1
    write_to = folder / "out.zarr" if to_store else None
    with pytest.raises(TileError, match=rf"Tile \(0, 0\), region \[0:5, 0:6\]: .*{message}") as caught:
        tile_process(
            image, fn, tile_shape=(4, 5), overlap=1, block_ids=[0], compute=True, write_to=write_to, stage_dir=folder
        )
    assert caught.value.tile == (0, 0)
    assert caught.value.region == (slice(0, 5), slice(0, 6))
    assert caught.value.__cause__ is not None
    # Nothing was finished: nothing is left.
    assert list(folder.iterdir()) == []


class OddError(Exception):
    """An error that cannot be made again from its arguments."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


def failing_oddly(block: NDArray[Any]) -> Any:
    raise OddError(7, reason="broken lamp")


@pytest.mark.parametrize(
    ("fn", "cause", "message"),
    [
        (failing, KeyError, "KeyError: 'the model is not there'"),
        (as_float, TypeError, "expected integers"),
        (failing_oddly, None, r"OddError: broken lamp \(7\)"),
    ],
)
def test_the_first_failure_comes_with_its_tile_cause_and_traceback(
    fn: Any, cause: type[Exception] | None, message: str, image: NDArray[Any], scheduler: str
) -> None:
    with pytest.raises(TileError, match=rf"Tile \(\d, \d\), region \[.*\]: the function failed .*{message}") as caught:
        tile_process(image, fn, tile_shape=(4, 5), overlap=1, compute=True)
    assert isinstance(caught.value.__cause__, cause or Exception)
    shown = "".join(traceback.format_exception(caught.value))
    if fn is not as_float:
        assert fn.__name__ in shown, "the traceback does not tell where the function failed"


def test_tile_errors_survive_pickling() -> None:
    try:
        raise TileError("Tile (1,)", (1,), (slice(3, 5),)) from ValueError("cause")
    except TileError as error:
        copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.tile, copy.region) == ("Tile (1,)", (1,), (slice(3, 5),))
    assert isinstance(copy.__cause__, ValueError)


# More objects than fit


@pytest.mark.parametrize("to_store", [False, True])
def test_more_objects_than_fit_are_an_error_before_anything_final_is_written(
    to_store: bool, scheduler: str, folder: Path
) -> None:
    image = np.zeros((40, 40), np.uint8)
    image[::2, ::2] = 1
    write_to = folder / "out.zarr" if to_store else None
    with pytest.raises(LabelOverflowError) as caught:
        tile_process(image, components, tile_shape=(10, 10), dtype="uint8", compute=True, write_to=write_to)
    assert "400 objects" in str(caught.value)
    assert "dtype uint8, whose largest value is 255" in str(caught.value)
    assert "wider dtype" in str(caught.value)
    if write_to is not None:
        assert not write_to.exists()


@synchronous
def test_a_dtype_that_fits_objects_but_not_ids_with_gaps_asks_for_sequential_labels() -> None:
    # Ten bars, cut by 16 tiles into 160 labels, and a voxel in the last tile, whose id is 161.
    image = np.zeros((21, 160), np.uint8)
    image[0:20:2] = image[20, 159] = 1
    with pytest.raises(
        LabelOverflowError, match=r"11 objects with ids up to 161 do not fit dtype int8.*or sequential_labels=True"
    ):
        tile_process(image, components, tile_shape=(21, 10), dtype="int8", compute=True)
    labels = tile_process(image, components, tile_shape=(21, 10), dtype="int8", sequential_labels=True, compute=True)
    assert_same_objects(labels, components(image))


@synchronous
@pytest.mark.parametrize(("n", "dtype"), [(127, "int8"), (255, "uint8")])
def test_exactly_as_many_objects_as_fit_do(n: int, dtype: str) -> None:
    image = np.zeros(2 * n, np.uint8)
    image[::2] = 1
    labels = tile_process(image, components, tile_shape=(30,), dtype=dtype, compute=True)
    assert labels.max() == n
    one_more = np.concatenate([image, [1]])
    with pytest.raises(LabelOverflowError, match=f"{n + 1} objects"):
        tile_process(one_more, components, tile_shape=(30,), dtype=dtype, compute=True)
