"""Each test file needs a library of its own; where it is not installed, the file is left out."""

from __future__ import annotations

import importlib.util
import os
import tempfile

import pytest

collect_ignore = [
    name
    for library, names in {
        "cellpose": ["networks.py", "test_cellpose.py", "train_cellpose.py"],
        "stardist": ["test_stardist.py", "train_stardist.py"],
    }.items()
    for name in names
    if importlib.util.find_spec(library) is None
]
# Read when the libraries are imported: nothing of the user's is looked at, and no GPU is taken.
_no_models = tempfile.TemporaryDirectory()
os.environ["CELLPOSE_LOCAL_MODELS_PATH"] = _no_models.name
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"


@pytest.fixture(autouse=True)
def _own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test load its models anew."""
    from blockbuster.plugins import models

    monkeypatch.setattr(models, "_process", models._Process())
