"""README, CLI reference and settings say the same as the program."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from aggregator.cli import app
from aggregator.errors import UsageError
from aggregator.settings import Settings
from docs.generate import commands
from tests.harness import Database

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_and_option_is_in_the_reference() -> None:
    """docs/cli.md, made by ``make cli-reference``, names every command and every option of it."""
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = {part.splitlines()[0].strip(): part for part in text.split("\n## aggregator")[1:]}
    assert set(sections) == {"", *commands()}
    for name, command in commands().items():
        for parameter in command.params:
            for option in (opt for opt in parameter.opts if opt.startswith("-")):
                assert option in sections[name], f"{option} of {name}: run make cli-reference"


def test_every_command_is_in_the_readme() -> None:
    """README's table of commands has them all."""
    table = README[README.index("## Commands") : README.index("## From Python")]
    for command in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"`{command}`" in table


def test_every_setting_is_in_the_readme_with_its_default() -> None:
    """README's table of settings is that of the settings class."""
    rows = dict(re.findall(r"^\| `AGGREGATOR_([A-Z_]+)` \| (.*?) \|", README, re.MULTILINE))
    assert set(rows) == {name.upper() for name in Settings.model_fields}
    for name, field in Settings.model_fields.items():
        if field.default is not None:
            default = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
            assert rows[name.upper()].strip("`") == default


def test_an_old_server_is_refused(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PostgreSQL that is too old gets one line that says which one is needed."""
    from aggregator import db as module

    monkeypatch.setattr(module, "MINIMUM_SERVER", 990000)
    with pytest.raises(UsageError, match=r"PostgreSQL \d+ is too old: aggregator needs PostgreSQL 99 or later"):
        module.connect(db.settings)
