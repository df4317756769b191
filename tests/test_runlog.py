"""What is noted of tiles, by which process, and read while it grows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import blockbuster
from blockbuster.runlog import ENTRY, LogReader, State, append_entry, read_log, write_seams
from blockbuster.stage import Stage
from tests.helpers import components

N = 12


def noted(folder: Path, block_id: int, state: State = State.DONE, began: float = 0.0, n: int = 0) -> None:
    append_entry(str(folder), (block_id, state, began, 1.5, 100 + block_id, n))


@pytest.fixture
def log_folder(tmp_path: Path) -> Path:
    """An empty log."""
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


# One process after the other


def test_a_reader_gives_each_entry_once(log_folder: Path) -> None:
    reader = LogReader(str(log_folder))
    assert list(reader.new_entries()) == []
    noted(log_folder, 3)
    noted(log_folder, 5)
    ((name, entries),) = reader.new_entries()
    assert name.endswith(f"-{os.getpid()}")
    assert entries["block_id"].tolist() == [3, 5]
    noted(log_folder, 4)
    ((_, entries),) = reader.new_entries()
    assert entries["block_id"].tolist() == [4]
    assert list(reader.new_entries()) == []


def test_an_entry_that_is_being_written_is_read_when_it_is_whole(log_folder: Path) -> None:
    entry = np.array([(7, State.SKIPPED, 1.0, 2.0, 3, 4)], ENTRY).tobytes()
    reader = LogReader(str(log_folder))
    (log_folder / "other-1").write_bytes(entry + entry[:11])
    assert [entries["block_id"].tolist() for _, entries in reader.new_entries()] == [[7]]
    (log_folder / "other-1").write_bytes(entry + entry)
    assert [entries["block_id"].tolist() for _, entries in reader.new_entries()] == [[7]]


def test_of_a_tile_that_was_tried_again_the_last_counts(log_folder: Path) -> None:
    noted(log_folder, 1, State.FAILED, began=10)
    noted(log_folder, 2, State.DONE, began=11)
    noted(log_folder, 1, State.DONE, began=20, n=9)
    (log_folder / "other-1").write_bytes(np.array([(2, State.FAILED, 5.0, 1.0, 0, 0)], ENTRY).tobytes())
    log = read_log(str(log_folder))
    assert log.block_id.tolist() == [2, 1]
    assert log.state.tolist() == [State.DONE, State.DONE]
    assert log.n_objects.tolist() == [0, 9]
    assert {log.workers[one].split("-")[-1] for one in log.worker} == {str(os.getpid())}


def test_without_a_folder_the_log_is_empty(log_folder: Path) -> None:
    log = read_log(str(log_folder / "none"))
    assert log.block_id.size == log.seams.size == 0
    assert log.seams.shape == (0, 3)
    with pytest.raises(FileNotFoundError):
        noted(log_folder / "none", 1)


def test_seams_are_kept_as_they_were_noted_last(log_folder: Path) -> None:
    write_seams(str(log_folder), np.array([[0, 1, 5]]))
    write_seams(str(log_folder), np.array([[0, 1, 5], [1, 2, 3]]))
    assert read_log(str(log_folder)).seams.tolist() == [[0, 1, 5], [1, 2, 3]]
    assert [path.name for path in log_folder.iterdir()] == ["seams"]


# A run


def test_a_run_notes_every_tile_and_every_merge(scheduler: str, tmp_path: Path) -> None:
    image = np.zeros((40, 30), np.uint8)
    image[8:12, 2:8] = 1
    image[20:39, 15] = 1
    blockbuster.tile_process(
        image,
        components,
        tile_shape=(10, 10),
        skip_empty=True,
        write_to=tmp_path / "labels.zarr",
        stage_dir=tmp_path / "stages",
        keep_stage=True,
    )
    (stage,) = (tmp_path / "stages").iterdir()
    log = read_log(Stage(str(stage)).log)
    assert sorted(log.block_id.tolist()) == list(range(N))
    # Tiles 0 and 3 hold the first object, 7 and 10 the second.
    objects = dict(zip(log.block_id.tolist(), log.n_objects.tolist(), strict=True))
    assert {block_id for block_id, n in objects.items() if n} == {0, 3, 7, 10}
    assert set(log.block_id[log.state == State.SKIPPED].tolist()) == set(range(N)) - {0, 3, 7, 10}
    assert log.seams.tolist() == [[0, 3, 1], [7, 10, 1]]
    assert log.n_bytes.tolist() == [100] * N
    assert (log.seconds >= 0).all()
    ended = log.began + log.seconds
    assert (np.diff(ended) >= 0).all()
