"""Environments of several Pythons, with the lowest dependencies that pyproject.toml allows, or the newest there are."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from pathlib import Path

from tests.matrix.servers import CACHE, NotThereError, run

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}
HERE = ".".join(platform.python_version_tuple()[:2])
"""The Python that runs this; its environment is the newest one."""


def _interpreter(version: str) -> str:
    """Return a Python on PATH or of pyenv's; else its number, for uv to find or fetch."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in (shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python3")))):
        try:
            if candidate and f"Python {version}." in run(candidate, "--version"):
                return candidate
        except NotThereError:  # a shim of pyenv's for a version that is not chosen
            continue
    return version


def python_of(version: str, dependencies: str) -> Path:
    """Return the Python of an environment, made where it is not there or pyproject.toml has changed since."""
    if (version, dependencies) == (HERE, "newest"):
        return Path(sys.executable)
    folder = CACHE / f"python-{version}-{dependencies}"
    python, stamp = folder / "bin" / "python", folder / "pyproject"
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    uv, requirements = str(Path(sys.executable).with_name("uv")), str(folder / "requirements.txt")
    run(uv, "venv", "--quiet", "--clear", "--python", _interpreter(version), str(folder))
    # Wheels only: of what has none for this Python the lowest that does, which is what pip would install too.
    run(uv, "pip", "compile", "--quiet", "--python", str(python), "--only-binary", ":all:",
        "--resolution", RESOLUTIONS[dependencies], "--all-extras", "--group", "dev",
        str(ROOT / "pyproject.toml"), "--output-file", requirements)  # fmt: skip
    run(uv, "pip", "install", "--quiet", "--python", str(python), "--requirements", requirements)
    run(uv, "pip", "install", "--quiet", "--python", str(python), "--no-deps", "--editable", str(ROOT))
    stamp.write_text(wanted)
    return python
