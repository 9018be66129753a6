"""The built wheel: what is in it, and that it works in an empty environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True
    )
    return next(folder.glob("*.whl"))


def test_contents(wheel: Path) -> None:
    """The wheel carries the migrations under our own name, and neither tests nor a package named alembic."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("aggregator/_alembic/env.py", "aggregator/_alembic/versions/0001_core.py", "aggregator/py.typed"):
        assert name in names
    for folder, place in (("alembic/sql", "aggregator/_alembic/sql"), ("aggregator/sql", "aggregator/sql")):
        for path in (ROOT / folder).glob("*.sql"):
            assert f"{place}/{path.name}" in names
    static = ROOT / "aggregator" / "web" / "static"
    for path in static.rglob("*"):
        assert path.is_dir() or f"aggregator/web/static/{path.relative_to(static).as_posix()}" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"aggregator"}
    assert not any("__pycache__" in name for name in names)


def test_in_an_empty_environment(wheel: Path, tmp_path: Path, new_database: Any) -> None:
    """Installed with its dependencies and nothing else, it migrates, attaches, refreshes and shows."""
    venv.create(tmp_path / "env", with_pip=True)
    program = tmp_path / "env" / "bin"
    subprocess.run([program / "pip", "install", "-q", str(wheel)], check=True, capture_output=True)
    db = new_database()
    db.execute("drop schema usage cascade")
    db.insert("2026-03-01 00:00+00", "ai", 0, '{"tokens_in": 5}')
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PG", "PYTHON", "VIRTUAL"))
    }
    environment["AGGREGATOR_DATABASE_URL"] = db.dsn

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [program / "aggregator", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result
        return result.stdout

    assert "migrate" in run("--help")
    for command in ("migrate", "attach", "refresh", "verify", "status"):
        run(command)
    overview = json.loads(run("show", "--days", "365", "--format", "json"))
    assert overview["by_collection"][0]["total_value"] == 5
    db.compare()
    demo = subprocess.run(
        [program / "aggregator", "demo"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert demo.returncode == 1
    assert "pip install 'usage-aggregator[embedded]'" in demo.stderr
