"""Zip the folder bundle/ for ``superset import-dashboards``: python deploy/superset/bundle.py URI usage.zip."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import yaml

BUNDLE = Path(__file__).parent / "bundle"
DATABASE = Path("databases/usage.yaml")


def write_bundle(target: Path, uri: str) -> None:
    """Write the bundle with a database connection of its own, an SQLAlchemy URI like postgresql+psycopg2://…."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(BUNDLE.rglob("*.yaml")):
            name = path.relative_to(BUNDLE)
            text = path.read_text(encoding="utf-8")
            if name == DATABASE:
                text = yaml.safe_dump({**yaml.safe_load(text), "sqlalchemy_uri": uri}, sort_keys=False)
            archive.writestr(str("usage" / name), text)


if __name__ == "__main__":
    write_bundle(Path(sys.argv[2]), sys.argv[1])
