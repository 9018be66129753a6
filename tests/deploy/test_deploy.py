"""The files of deploy/: each checked by its own validator, and against the program that they run."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from aggregator import cli
from aggregator.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNITS = sorted(path for path in (DEPLOY / "systemd").iterdir())
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here, so its files were not checked by it")
    return found


def check(*command: str, cwd: Path = DEPLOY) -> str:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_systemd_units(tmp_path: Path) -> None:
    """systemd-analyze verify finds nothing; the program's path stands in for one that is there."""
    systemd_analyze = program("systemd-analyze")
    copies = []
    for unit in UNITS:
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/opt/aggregator/bin/aggregator", "/bin/true"))
        copies.append(str(copy))
    output = check(systemd_analyze, "verify", "--man=no", *copies)
    assert not [line for line in output.splitlines() if "aggregator" in line], output


def test_alert_rules() -> None:
    """promtool accepts the rules, and they fire when they should, and not before."""
    promtool = program("promtool")
    check(promtool, "check", "rules", "prometheus/alerts.yaml")
    check(promtool, "test", "rules", "prometheus/alerts_test.yaml")


def test_every_alert_is_seen_to_fire() -> None:
    """Each has a test in which it fires and one in which it does not, so that none is a rule that cannot fire."""
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    tests = yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yaml").read_text())["tests"]
    alerts = {rule["alert"] for group in groups for rule in group["rules"]}
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == alerts
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == alerts


def test_cron_refreshes_do_not_overlap(tmp_path: Path) -> None:
    """The refresh's line runs; while one is at work the next is left out, and is no error."""
    program("flock")
    line = next(line for line in (DEPLOY / "cron" / "aggregator").read_text().splitlines() if line.startswith("*/5"))
    command = line.split(maxsplit=6)[6].partition(" 2>&1 |")[0].replace("/opt/aggregator/bin/aggregator", "echo")

    def run() -> str:
        environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
        result = subprocess.run(
            ["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, timeout=60, check=True
        )
        return result.stdout

    assert run() == "refresh\n"
    with (tmp_path / "refresh.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert run() == ""


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_kubernetes_manifests(path: Path) -> None:
    """Every document is valid by the API's schema, strictly."""
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_compose_file() -> None:
    """compose.yaml is valid by the Compose specification's schema."""
    check(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")


def test_dockerfile() -> None:
    """Not root, with a health check, in exec form, and small: what hadolint would say, which no package index has."""
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    instructions = [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]
    assert {name for name, _ in instructions} <= {
        "FROM", "WORKDIR", "COPY", "RUN", "LABEL", "USER", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD",
    }  # fmt: skip
    last = [value for name, value in instructions]
    assert [value for name, value in instructions if name == "USER"] == ["10001:10001"]
    for name in ("ENTRYPOINT", "CMD"):
        assert next(value for found, value in instructions if found == name).startswith("[")
    assert all(":latest" not in value and ":" in value for name, value in instructions if name == "FROM")
    assert any("/health/live" in value for value in last)
    final = [name for name, _ in instructions][[name for name, _ in instructions].index("FROM", 1) :]
    assert "RUN" not in final


def test_settings_exist() -> None:
    """Every AGGREGATOR_ variable in there is a setting."""
    for path in FILES:
        for name in re.findall(r"\bAGGREGATOR_([A-Z_]+)\b", path.read_text()):
            assert name.lower() in Settings.model_fields, f"{path.name}: AGGREGATOR_{name}"


def _commands() -> dict[str, set[str]]:
    command: Any = typer.main.get_command(cli.app)
    return {
        name: {option for parameter in sub.params for option in parameter.opts}
        for name, sub in command.commands.items()
    }


def test_commands_exist() -> None:
    """Every ``aggregator …`` in there, comments and alerts too, is a command with those options."""
    commands = _commands()
    used = 0
    for path in FILES:
        text = path.read_text()
        found = re.findall(
            r"\baggregator ((?:migrate|attach|detach|refresh|schedule|status|verify|rebuild|seal|purge|show)\b(?: --[a-z-]+)*)",
            text,
        )
        found += [" ".join(re.findall(r"[\w-]+", arguments)) for arguments in re.findall(r"args: \[([^\]]+)\]", text)]
        for line in found:
            name, *options = line.split()
            assert name in commands, f"{path.name}: {line}"
            assert set(options) <= commands[name], f"{path.name}: {line}"
            used += 1
    assert used > 15


def test_metrics_exist() -> None:
    """Every metric and problem code of the alert rules is one that the program has."""
    source = "".join(path.read_text() for path in (DEPLOY.parent / "aggregator").glob("*.py"))
    codes = (DEPLOY.parent / "alembic" / "sql" / "0002_operations.sql").read_text()
    text = "".join(rule["expr"] for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"] for rule in group["rules"])  # fmt: skip
    for name in set(re.findall(r"aggregator_(\w+)", text)):
        bare = name.removesuffix("_total")
        assert f'"aggregator_{bare}"' in source or f'gauge("{bare}"' in source, name
    for expression in re.findall(r'code=~?"([^"]+)"', text):
        for code in expression.split("|"):
            assert f"('{code}'," in codes, code
