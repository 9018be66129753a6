"""Zip the folder bundle/ for ``superset import-dashboards``: DATABASE_URI=… python deploy/superset/bundle.py usage.zip."""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import yaml

BUNDLE = Path(__file__).parent / "bundle"
DATABASE = Path("databases/usage.yaml")


def write_bundle(target: Path, uri: str) -> None:
    """Write the bundle with a database connection of its own, an SQLAlchemy URI like postgresql+psycopg2://….

    For the owner's eyes only: the URI may have a password in it.
    """
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(BUNDLE.rglob("*.yaml")):
            name = path.relative_to(BUNDLE)
            text = path.read_text(encoding="utf-8")
            if name == DATABASE:
                text = yaml.safe_dump({**yaml.safe_load(text), "sqlalchemy_uri": uri}, sort_keys=False)
            archive.writestr(str("usage" / name), text)


if __name__ == "__main__":
    write_bundle(Path(sys.argv[1]), os.environ["DATABASE_URI"])  # others would see an argument
