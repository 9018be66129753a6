"""Write docs/cli.md from the commands' own help."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from aggregator.cli import app

TARGET = Path(__file__).parent / "cli.md"


def reference() -> str:
    """Return the reference as Markdown: the help of each command, at 100 columns."""
    runner = CliRunner()
    parts = ["# Command line\n\nGenerated from `--help` by `make cli-reference`.\n"]
    names = [
        command.name or (command.callback.__name__ if command.callback else "") for command in app.registered_commands
    ]
    for arguments in [[], *([name] for name in names)]:
        result = runner.invoke(
            app, [*arguments, "--help"], prog_name="aggregator", env={"COLUMNS": "100", "TERM": "dumb"}
        )
        lines = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
        parts.append(f"## aggregator {' '.join(arguments)}".rstrip() + f"\n\n```\n{lines}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
