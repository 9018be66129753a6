"""What the image is made of: locked by hashes, within pyproject's bounds, and listed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = ("web", "parquet")
"""What the Dockerfile says is in the image."""


def locked(name: str) -> dict[str, Version]:
    """Return the packages of a lock file; each is pinned, and has hashes and nothing else."""
    found = {}
    text = (DEPLOY / name).read_text(encoding="utf-8")
    for entry in re.sub(r"\\\n\s*", " ", text).splitlines():
        if entry.startswith("#"):
            continue
        requirement, *hashes = entry.split(" --hash=sha256:")
        assert hashes, f"{requirement} has no hash"
        assert all(re.fullmatch(r"[0-9a-f]{64}", one.strip()) for one in hashes), requirement
        parsed = Requirement(requirement)
        pin = next(iter(parsed.specifier))
        assert (pin.operator, len(parsed.specifier), parsed.url) == ("==", 1, None), requirement
        found[str(canonicalize_name(parsed.name))] = Version(pin.version)
    return found


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("requirements.lock", [*PROJECT["project"]["dependencies"],
                               *(one for extra in EXTRAS for one in PROJECT["project"]["optional-dependencies"][extra])]),
        ("build.lock", PROJECT["build-system"]["requires"]),
    ],
)  # fmt: skip
def test_locks_satisfy_the_project(name: str, wanted: list[str]) -> None:
    """Whatever pyproject.toml asks for is locked at a version within its bounds: else run make lock."""
    there = locked(name)
    for text in wanted:
        requirement = Requirement(text)
        version = there.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in {name}: run make lock"
        assert requirement.specifier.contains(version), f"{requirement} is locked at {version}: run make lock"


def test_image_installs_by_hash_only() -> None:
    """Whatever pip fetches for the image it checks by hash; the wheel itself is made and installed without an index."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text(encoding="utf-8"))
    fetched = re.findall(r"pip (?:install|wheel|download) [^&\n]*", text)
    assert len(fetched) == 4
    for command in fetched:
        assert ("--require-hashes" in command) != ("--no-index" in command and "--no-deps" in command), command
    for name in ("requirements.lock", "build.lock"):
        assert f"--require-hashes --requirement {name}" in text
        assert f"!deploy/{name}" in (ROOT / ".dockerignore").read_text()
    assert f"--extra {' --extra '.join(EXTRAS)} " in (ROOT / "Makefile").read_text()


def test_bill_of_materials(tmp_path: Path) -> None:
    """``make sbom`` lists what is locked, with versions and hashes, in CycloneDX."""
    recipe = re.search(r"^sbom:.*?\n(.*?)\n\n", (ROOT / "Makefile").read_text(), re.DOTALL | re.MULTILINE)
    assert recipe is not None
    command = re.sub(r"\\\n\s*", "", recipe[1]).split("\n")[-1].split()[1:]
    target = tmp_path / "bom.json"
    command[command.index("dist/usage-aggregator.cdx.json")] = str(target)
    subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", *command], cwd=ROOT, check=True, capture_output=True, timeout=120
    )
    bom = json.loads(target.read_text(encoding="utf-8"))
    assert bom["bomFormat"] == "CycloneDX"
    assert bom["metadata"]["component"]["name"] == "usage-aggregator"
    assert bom["metadata"]["component"]["version"] == PROJECT["project"]["version"]
    listed = {canonicalize_name(one["name"]): Version(one["version"]) for one in bom["components"]}
    assert listed == locked("requirements.lock")
    assert all(one["externalReferences"] for one in bom["components"])
