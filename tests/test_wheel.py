"""What is built and installed: all of the package, and enough of it to work outside the repository."""

import fnmatch
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]
PARTS = ("hf_instructgpt", "recipes", "model_cards", "pyproject.toml", "README.md", "LICENSE")
KINDS = (
    "py.typed",
    "report/page/page.html",
    "report/page/*.css",
    "report/page/*.js",
    "report/glossary.json",
    "data/samples/*/*.jsonl",
    "model_cards/*.md",
    *(f"recipes/*/*.{suffix}" for suffix in ("yaml", "md", "py", "txt", "ipynb")),
    "recipes/*/data/*.jsonl",
)
SITE = ("recipes/docs/", "recipes/mkdocs.yml")  # the documentation's sources, which are not installed
BUILD = (
    "import sys; from setuptools import build_meta; print(getattr(build_meta, f'build_{sys.argv[1]}')(sys.argv[2]))"
)


def build(kind, source, folder):
    """Build a wheel or an sdist from a folder of sources; returns its path."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", BUILD, kind, str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel, and the wheel made of the sdist."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PARTS:
        path = ROOT / name
        shutil.copytree(path, source / name, ignore=ignore) if path.is_dir() else shutil.copy(path, source)
    sdist = build("sdist", source, folder / "sdist")
    wheel = build("wheel", source, folder / "wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return wheel, build("wheel", unpacked, folder / "wheel-of-sdist")


def names_in(wheel):
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def listed_by_git(*options):
    """The files under the package's folders that git lists, by the names they have in a wheel; skips without git."""
    if not shutil.which("git"):
        pytest.skip("no git")
    command = ["git", "ls-files", "-z", *options, *PARTS[:3]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        pytest.skip("not a git checkout")
    names = done.stdout.rstrip("\0").split("\0")
    names = [name for name in names if not name.startswith(SITE)]
    return {name if name.startswith("hf_instructgpt/") else f"hf_instructgpt/{name}" for name in names}


def test_wheel_and_sdist_hold_the_same_and_no_tests(built):
    names = names_in(built[0])
    assert names == names_in(built[1])
    missing = [kind for kind in KINDS if not fnmatch.filter(names, f"hf_instructgpt/{kind}")]
    assert not missing
    parts = {part for name in names for part in Path(name).parts}
    assert (
        "docs" not in parts
        and "tests" not in parts
        and not fnmatch.filter(parts, "test_*")
        and "conftest.py" not in parts
    )


def test_the_wheel_holds_what_git_tracks_and_nothing_git_ignores(built):
    names, tracked = names_in(built[0]), listed_by_git("--cached")
    assert tracked <= names, sorted(tracked - names)
    extra = names - tracked - listed_by_git("--cached", "--others", "--exclude-standard")
    assert not extra, sorted(extra)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The `bin` of a virtual environment with the wheel, and this environment's packages but the package itself."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    (site,) = folder.glob("venv/lib/python*/site-packages")
    here = Path(importlib.metadata.distribution("torch").locate_file(""))
    for path in here.iterdir():
        if "hf_instructgpt" not in path.name:
            (site / path.name).symlink_to(path)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "venv" / "bin" / "python"), "install", "--no-deps"]
    subprocess.run([*pip, "--no-index", "--quiet", str(built[0])], check=True, timeout=120)
    return folder / "venv" / "bin"


def test_the_installed_wheel_runs_outside_the_repository(installed, tmp_path):
    asks = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    look = "import hf_instructgpt, hf_instructgpt.files as r; print(hf_instructgpt.__file__)\n"
    look += "print(r.resource('recipes', 'document', 'pipeline.yaml'))"
    done = subprocess.run(
        [installed / "python", "-c", look], capture_output=True, text=True, env=asks, cwd=tmp_path, check=True
    )
    package, config = done.stdout.split()
    assert Path(package).is_relative_to(installed.parent) and Path(config).is_relative_to(installed.parent)
    command = [installed / "hf-instructgpt", "run", "--config", config, "--output_dir", "out"]
    done = subprocess.run(command, capture_output=True, text=True, env=asks, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "# out" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "## Use" in (tmp_path / "out" / "ppo" / "README.md").read_text(encoding="utf-8")
