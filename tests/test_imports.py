"""What an import brings with it: zarr, dask and little more; what is heavy comes with the call that needs it."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import pytest

# What takes seconds to import, or is there for windows, networks and models.
HEAVY = {
    *("PyQt5", "PyQt6", "PySide2", "PySide6", "qtpy", "napari", "magicgui", "vispy", "matplotlib"),
    *("torch", "tensorflow", "keras", "cellpose", "stardist", "csbdeep", "cupy", "numba"),
    *("distributed", "dask_jobqueue", "bokeh", "tornado", "cryptography", "aiohttp", "s3fs"),
    *("pandas", "pyarrow", "skimage", "tifffile", "PIL", "imageio", "ome_zarr"),
}
# What modules of the package import at their top, beside dask.array and zarr.
LIGHT = {"blockbuster", "cc3d", "fastremap", "filelock", "zarrs"}
COMMAND = {"click", "rich", "tomli_w"}

RECORDING = """
import dask.array, zarr
import json, sys

class Asked:
    names = []

    def find_spec(self, name, path=None, target=None):
        self.names.append(name)

before = set(sys.modules)
sys.meta_path.insert(0, Asked())
{}
made = set(sys.modules) - before
sys.stdout = sys.__stdout__
print(json.dumps([sorted(made), sorted(set(Asked.names))]))
"""
HELP = """
import io
from blockbuster.cli import main
sys.stdout = io.StringIO()
assert main(["--help"]) == 0
assert "label" in sys.stdout.getvalue()
"""

statements = pytest.mark.parametrize(
    "statement", ["import blockbuster", "import blockbuster.cli", HELP], ids=["package", "command", "help"]
)


@functools.cache
def brought_by(statement: str) -> tuple[frozenset[str], frozenset[str]]:
    """Modules that a statement imports in a process with dask.array and zarr, and all that it looks for in vain too."""
    made = subprocess.run(
        [sys.executable, "-W", "error", "-c", RECORDING.format(statement)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    imported, asked = json.loads(made.stdout)
    return frozenset(imported), frozenset(asked)


def packages(modules: frozenset[str]) -> set[str]:
    """Top-level packages that are not from the standard library."""
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


@statements
def test_nothing_heavy_is_imported_or_even_looked_for(statement: str) -> None:
    imported, asked = brought_by(statement)
    assert packages(imported | asked) & HEAVY == set()


@statements
def test_scipy_comes_with_the_first_call_that_needs_it(statement: str) -> None:
    imported, _ = brought_by(statement)
    assert {name for name in imported if name.startswith("scipy.")} == set()


@statements
def test_of_the_package_what_few_need_stays_behind(statement: str) -> None:
    imported, _ = brought_by(statement)
    behind = ("napari", "demo", "pictures", "local_cluster", "slurm_cluster", "jobqueue", "plugins.stardist")
    assert "blockbuster.tiles" in imported
    assert {f"blockbuster.{name}" for name in behind} & imported == set()


def test_the_packages_that_come_are_those_that_are_needed() -> None:
    package, _ = brought_by("import blockbuster")
    command, _ = brought_by("import blockbuster.cli")
    assert packages(package) - {"dask", "zarr"} <= LIGHT
    assert packages(command) - {"dask", "zarr"} <= LIGHT | COMMAND


@pytest.mark.parametrize("name", ["tifffile", "no_such_package"])
def test_a_package_would_be_seen_even_where_it_is_not_installed(name: str) -> None:
    _, asked = brought_by(f"try:\n    import {name}\nexcept ImportError:\n    pass")
    assert name in packages(asked)


def test_what_comes_late_would_be_seen_if_it_came_at_once() -> None:
    imported, _ = brought_by("import blockbuster, scipy.ndimage, blockbuster.pictures")
    assert {"blockbuster.pictures", "scipy.ndimage"} <= imported
    assert "PIL" in packages(imported) & HEAVY
