"""The site: its commands, its pictures, its reference, and the way to each of its pages."""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from docs.eight_steps import REGION, WIDTH, draw_steps, in_tiles, joined, views_of
from PIL import Image
from skimage import data

import blockbuster
from blockbuster.cli import COMMANDS, main
from tests.test_commands import without_changing
from tests.test_project import fences

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def linked(page: Path) -> set[str]:
    """Where the links and pictures of a page lead."""
    return set(re.findall(r"\]\(([^)#]+)", page.read_text()))


# The commands


def commands(text: str) -> list[list[str]]:
    """The commands of a block; none if it is for another program, too."""
    words = [shlex.split(line) for line in text.strip().splitlines()]
    return [line[1:] for line in words] if all(line[0] == "blockbuster" for line in words) else []


def test_start_shows_what_its_commands_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks, namespace, n_run = fences(DOCS / "start.md"), {"__name__": "__main__"}, 0
    for block, after in itertools.pairwise(blocks):
        printed = ""
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(block.text, namespace)
        for words in commands(block.text) if block.language == "sh" else []:
            with contextlib.redirect_stdout(io.StringIO()) as told:
                assert main(words) == 0
            printed, n_run = told.getvalue(), n_run + 1
        if printed:
            assert after.language == "text"
            assert after.follows
            assert without_changing(printed) == without_changing(after.text)
    assert n_run == 4


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_every_command_is_one(page: Path) -> None:
    """All that can be known of a command before it is run."""
    known = {command.name: command.made() for command in COMMANDS}
    blocks = [block.text for block in fences(page) if block.language in ("sh", "{code-block} sh")]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    for words in (shlex.split(line.partition("&&")[0], comments=True) for line in lines):
        if words[:1] == ["blockbuster"]:
            known[words[1]].make_context(words[1], words[2:])


@pytest.mark.slurm
def test_the_script_for_slurm_comes_to_its_result(tmp_path: Path) -> None:
    blocks = fences(DOCS / "slurm.md")
    script = "\n".join(block.text for block in blocks if block.language in ("python", "{code-block} python"))
    for asked, there in (('"cores": 4', '"cores": 1'), ('"8GiB"', '"1GiB"'), ("jobs=(2, 50)", "jobs=(1, 2)")):
        assert asked in script
        script = script.replace(asked, there)
    (tmp_path / "segment.py").write_text(script)
    made = subprocess.run(
        [sys.executable, "segment.py"],
        cwd=tmp_path,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert made.returncode == 0, made.stderr
    assert made.stdout.splitlines()[-1] == [block.text.strip() for block in blocks if block.language == "text"][-1]
    assert list((tmp_path / "cache" / "blockbuster").iterdir()) == []


# The pictures


def test_every_picture_is_on_a_page() -> None:
    shown = set.union(*(linked(page) for page in PAGES))
    assert {f"images/{picture.name}" for picture in (DOCS / "images").iterdir()} - shown == set()


@pytest.mark.parametrize("page", ["start.md", "choosing.md"])
def test_pictures_are_saved_by_the_code_beside_them(page: str) -> None:
    text = (DOCS / page).read_text()
    saved = set(re.findall(r'"([\w-]+\.(?:jpg|png))"', "".join(block.text for block in fences(DOCS / page))))
    assert saved == set(re.findall(r"\]\(images/([^)]+)\)", text))


def test_the_figure_of_the_steps_is_what_the_page_says() -> None:
    """The right tile begins after 4 labels: its labels 1 and 5 are 5 and 9, and go on from 2 and 4."""
    image = data.coins()[REGION]
    pieces, final = in_tiles(image, None), in_tiles(image, "iou")
    n_left = int(pieces[:, :WIDTH].max())
    local = np.where(pieces > n_left, pieces - n_left, pieces)
    assert (n_left, int(pieces.max()), int(final.max())) == (4, 9, 7)
    assert joined(*views_of(image, local)) == [(2, 1), (4, 5)]
    words = " ".join((DOCS / "how-it-works.md").read_text().split())
    assert "an image of seven coins" in words.replace("a real image", "an image")
    assert "2 of the left tile is 1 of the right one" in words
    assert "what was 5 is 2, what was 9 is 4" in words


def test_the_figure_of_the_steps_is_drawn() -> None:
    drawn = draw_steps()
    with Image.open(DOCS / "images" / "steps.png") as kept:
        assert kept.size == drawn.size


# The reference


def test_the_reference_has_every_public_name_once() -> None:
    named = re.findall(r"^\.\. auto\w+:: ([\w.]+)$", (DOCS / "api.rst").read_text(), re.MULTILINE)
    assert len(named) == len(set(named))
    assert set(blockbuster.__all__) == {name for name in named if not name.startswith("blockbuster.")}


def test_errors_are_listed_as_errors_and_functions_as_functions() -> None:
    for kind, name in re.findall(r"^\.\. auto(\w+):: (\w+)$", (DOCS / "api.rst").read_text(), re.MULTILINE):
        assert kind == kind_of(getattr(blockbuster, name)), name


def kind_of(named: Any) -> str:
    if inspect.isclass(named):
        return "exception" if issubclass(named, Exception) else "class"
    return "function"


# The way to each page


def test_every_page_is_linked_from_the_first() -> None:
    assert {page.name for page in PAGES} - linked(DOCS / "index.md") == {"index.md"}


def test_every_module_that_is_to_be_read_is_there() -> None:
    package = Path(inspect.getfile(blockbuster)).parent
    named = re.findall(r"`(?:tests/)?(\w+\.py|\w+/)`", (DOCS / "reading.md").read_text())
    places = (package, Path(__file__).parent)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
    assert {"grid.py", "rules.py", "unions.py", "tiles.py", "run.py", "steps.py", "graph.py", "stage.py"} <= set(named)
