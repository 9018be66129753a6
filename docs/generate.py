"""Write docs/cli.md from the commands' own help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from aggregator.cli import app

TARGET = Path(__file__).parent / "cli.md"


def commands() -> dict[str, Any]:
    """Return every command by its whole name, those of groups too, in the order of the program."""
    found: dict[str, Any] = {}

    def walk(group: Any, prefix: str) -> None:
        for name, command in group.commands.items():
            found[prefix + name] = command
            if hasattr(command, "commands"):
                walk(command, f"{prefix}{name} ")

    walk(typer.main.get_command(app), "")
    return found


def reference() -> str:
    """Return the reference as Markdown: the help of each command, at 100 columns."""
    runner = CliRunner()
    parts = ["# Command line\n\nGenerated from `--help` by `make cli-reference`.\n"]
    for arguments in [[], *(name.split() for name in commands())]:
        result = runner.invoke(
            app, [*arguments, "--help"], prog_name="aggregator", env={"COLUMNS": "100", "TERM": "dumb"}
        )
        lines = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
        parts.append(f"## aggregator {' '.join(arguments)}".rstrip() + f"\n\n```\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
