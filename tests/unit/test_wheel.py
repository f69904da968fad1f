"""What is installed: our four packages with everything in them, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cyxwiz_tasks", "broker", "workers", "db")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(source / "dist")],
        cwd=source,
        check=True,
        capture_output=True,
    )
    [built] = (source / "dist").glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_module_of_our_packages_and_no_other_package(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        str(file.relative_to(ROOT))
        for package in PACKAGES
        for file in (ROOT / package).rglob("*")
        if file.suffix == ".py" or file.name in {"py.typed", "script.py.mako"}
    }
    assert names == expected


def test_the_wheel_brings_the_command_and_finds_the_services_commands(wheel):
    [entry_points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    text = wheel.read(entry_points).decode()
    assert "cyxwiz = cyxwiz_tasks.cli.main:main" in text
    for command in ("up", "demo", "scheduler", "worker", "flower", "db"):
        assert f"\n{command} = " in text
