"""What holds the project together: its names, its levels, its files, and the code of its pages."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import itertools
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
import zarr

import blockbuster

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "blockbuster"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])


# The pages


@dataclass(frozen=True)
class Fence:
    """A fenced block of a page; `follows` tells that nothing but space is between it and the one before."""

    language: str
    text: str
    line: int
    follows: bool


def fences(page: Path) -> list[Fence]:
    text, found, end = page.read_text(), [], 0
    for match in re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        between = text[end : match.start()]
        found.append(Fence(match[1], match[2], text[: match.start(2)].count("\n"), not between.strip()))
        end = match.end()
    return found


def run_page(page: Path) -> Iterator[tuple[str, str]]:
    """Run the Python of a page in one namespace; yields what each block prints, and what the page says it prints."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    blocks = fences(page)
    for block, after in itertools.zip_longest(blocks, blocks[1:]):
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                # Empty lines make the line numbers of a traceback those of the page.
                exec(compile("\n" * block.line + block.text, page, "exec"), namespace)
            if after is not None and after.language == "text" and after.follows:
                yield printed.getvalue().strip(), after.text.strip()


@every_page
def test_code_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for printed, said in run_page(page):
        assert printed == said


def test_a_page_that_says_something_else_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```text\n2\n```\n")
    assert list(run_page(page)) == [("1", "2")]


@every_page
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


def test_every_page_is_in_the_contents() -> None:
    listed = (ROOT / "docs" / "contents.rst").read_text().split()
    assert [page.stem for page in sorted((ROOT / "docs").glob("*.md")) if page.stem not in listed] == []


def test_readme_has_exactly_the_two_commands() -> None:
    commands = [
        line for fence in fences(ROOT / "README.md") if fence.language == "sh" for line in fence.text.split("\n")
    ]
    assert [command for command in commands if command] == ["make demo", "make test"]
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(targets)


def test_readme_opens_with_its_purpose_then_a_picture_then_the_commands() -> None:
    _title, purpose, picture, _how, commands, *_rest = (ROOT / "README.md").read_text().split("\n\n")
    assert len(re.findall(r"[.](?:\s|$)", purpose)) == 3
    assert picture.startswith("![")
    assert commands.startswith("```sh\n")


# The environments


def declared_requirements() -> dict[str, str]:
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    return dict(map(split_requirement, [f"python{project['requires-python']}", *project["dependencies"]]))


def split_requirement(requirement: str) -> tuple[str, str]:
    name, bound = re.fullmatch(r"([\w.\-\[\]]+)\s*(.*)", requirement).groups()
    return name, bound


def test_environment_is_that_of_the_package() -> None:
    listed = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    from_pip = [entry for part in listed if isinstance(part, dict) for entry in part["pip"]]
    found = dict(map(split_requirement, [*(part for part in listed if isinstance(part, str)), *from_pip]))
    assert found.pop("pip") == ""
    on_conda_forge = {"dask[array]": "dask-core"}
    assert found == {on_conda_forge.get(name, name): bound for name, bound in declared_requirements().items()}


def test_every_dependency_has_a_lower_bound() -> None:
    assert [name for name, bound in declared_requirements().items() if not re.fullmatch(r">=[\d.]+", bound)] == []


# The levels


def level_table() -> dict[str, int]:
    """The modules by their level, in the order of docs/architecture.md; a package within this one counts as one."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d) \| `(\w+)(?:\.py|/)` \|", page, re.MULTILINE)
    return {module: int(level) for level, module in rows}


def files_of(module: str) -> list[Path]:
    """The file of a module, or those of a package."""
    return sorted((PACKAGE / module).glob("*.py")) or [PACKAGE / f"{module}.py"]


MODULES = sorted(path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists())


def imports_of(module: str) -> set[str]:
    """Modules of the package that one imports, wherever in its code."""
    found = set()
    for node in itertools.chain.from_iterable(ast.walk(ast.parse(path.read_text())) for path in files_of(module)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{module} has a relative import"
        if isinstance(node, ast.ImportFrom) and node.module == "blockbuster":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("blockbuster."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {name.name.partition(".")[2] or "__init__" for name in node.names if "blockbuster" in name.name}
    return found


def test_every_module_has_its_place_in_the_table() -> None:
    assert sorted(level_table()) == MODULES
    levels = list(level_table().values())
    assert levels == sorted(levels)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    """The table is ordered, so that imports of rows above one's own cannot form a cycle."""
    order = list(level_table())
    assert module in order
    above = imports_of(module) - set(order[: order.index(module)]) - {module}
    assert above == set()


def test_only_one_module_builds_dask_graphs() -> None:
    makers = [path.stem for path in PACKAGE.glob("*.py") if re.search(r"_task_spec|HighLevelGraph", path.read_text())]
    assert makers == ["graph"]


# The import


def in_new_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)


def test_import_prints_nothing() -> None:
    made = in_new_process("import blockbuster")
    assert (made.stdout, made.stderr) == ("", "")


# The public names


FUNCTIONS = [name for name in blockbuster.__all__ if inspect.isfunction(getattr(blockbuster, name))]
RECORDS = [name for name in blockbuster.__all__ if dataclasses.is_dataclass(getattr(blockbuster, name))]


def sections(documented: Callable[..., Any]) -> dict[str, list[str]]:
    """The sections of a numpydoc docstring, by their titles."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}\n", inspect.getdoc(documented) or "", flags=re.MULTILINE)
    return {"": parts[0].split("\n")} | {
        title: text.split("\n") for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def documented_names(lines: list[str]) -> list[str]:
    """The names that a section of parameters explains."""
    heads = [line.partition(" :")[0] for line in lines if line and not line.startswith(" ")]
    return [name.strip("* ") for head in heads for name in head.split(",")]


@pytest.mark.parametrize("name", blockbuster.__all__)
def test_public_names_are_documented_in_one_line_first(name: str) -> None:
    summary, *rest = sections(getattr(blockbuster, name))[""]
    assert re.fullmatch(r"[A-Z`].*[.:]", summary)
    assert not rest or rest[0] == ""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_explain_every_parameter_in_order(name: str) -> None:
    function = getattr(blockbuster, name)
    assert documented_names(sections(function)["Parameters"]) == list(inspect.signature(function).parameters)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_public_functions_say_what_they_return_and_show_how(name: str) -> None:
    found = sections(getattr(blockbuster, name))
    assert {"Parameters", "Returns", "Examples"} <= set(found)
    assert any(line.lstrip().startswith(">>> ") for line in found["Examples"])


@pytest.mark.parametrize("name", RECORDS)
def test_public_records_explain_every_field(name: str) -> None:
    record = getattr(blockbuster, name)
    found = sections(record)
    fields = [field.name for field in dataclasses.fields(record) if field.init]
    assert documented_names(found.get("Parameters") or found["Attributes"]) == fields


def test_all_lists_every_public_name_in_order() -> None:
    assert blockbuster.__all__ == sorted(blockbuster.__all__, key=lambda name: (name.islower(), name))
    assert all(hasattr(blockbuster, name) for name in blockbuster.__all__)


# The demo


def test_demo_writes_valid_labels_and_a_picture(tmp_path: Path) -> None:
    from ome_zarr_models.v05.image import Image
    from PIL import Image as Picture

    made = subprocess.run(
        [sys.executable, "-m", "blockbuster", "demo", tmp_path], capture_output=True, text=True, check=True
    )
    n_objects = re.search(r"(\d+) after merging, (\d+) in the whole image", made.stdout)
    assert n_objects
    assert n_objects[1] == n_objects[2]
    group = zarr.open_group(tmp_path / "tissue.ome.zarr", mode="r")
    image = Image.from_zarr(group)
    assert image.labels.attributes.ome.labels == ["nuclei"]
    assert image.labels.members["nuclei"].attributes["ome"]["image_label"]["source"] == {"image": "../../"}
    with Picture.open(tmp_path / "demo.png") as picture:
        assert min(picture.size) > 1000
