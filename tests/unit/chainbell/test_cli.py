"""The command line's frame: options anywhere, one sentence and an exit status for what goes wrong."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import typer

from chainbell.__main__ import main
from chainbell.cli.app import COMMANDS, command_line, global_options_first
from chainbell.cli.init import template
from chainbell.settings import load_settings
from chainbell.settings_model import AssetSettings, ChainSettings, CreditRuleSettings, NodeSettings, Settings

ROOT = Path(__file__).resolve().parents[3]


def chainbell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command as an operator would."""
    return subprocess.run(
        [sys.executable, "-m", "chainbell", *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_global_options_may_stand_anywhere() -> None:
    wanted = ["--config", "a.toml", "--json", "tenants", "create", "Acme"]
    assert global_options_first(["tenants", "--config", "a.toml", "create", "Acme", "--json"]) == wanted
    assert global_options_first(["x", "--config=a.toml", "--", "--json"]) == ["--config=a.toml", "x", "--", "--json"]
    assert global_options_first(["x", "--config"]) == ["--config", "x"]


@pytest.mark.parametrize(
    ("arguments", "loaded"),
    [
        (["keys", "create", "status"], {"keys"}),
        (["--config", "status", "--json", "run"], {"run"}),
        (["--config=status", "--verbose", "audit", "--help"], {"audit"}),
        ([], set(COMMANDS)),
        (["--help"], set(COMMANDS)),
        (["--config"], set(COMMANDS)),
        (["bogus", "status"], set(COMMANDS)),
    ],
)
def test_only_the_command_that_is_called_is_loaded(arguments: list[str], loaded: set[str]) -> None:
    assert set(typer.main.get_command(command_line(arguments)).commands) == loaded  # type: ignore[attr-defined]


def test_ctrl_c_while_the_modules_load_ends_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "chainbell.cli.app", Interrupted("chainbell.cli.app"))
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        gc.enable()
    assert ended.value.code == 130


def test_init_writes_a_file_and_never_over_one(tmp_path: Path) -> None:
    done = chainbell("init", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "wrote chainbell.toml" in done.stdout
    (tmp_path / "chainbell.toml").write_text("mine")
    again = chainbell("init", cwd=tmp_path)
    assert again.returncode == 2
    assert again.stderr == "chainbell: chainbell.toml is there already; edit it, or replace it with --force\n"
    assert (tmp_path / "chainbell.toml").read_text() == "mine"
    forced = chainbell("init", "--demo", "--force", "--json", cwd=tmp_path)
    assert json.loads(forced.stdout) == {"file": "chainbell.toml"}
    assert tomllib.loads((tmp_path / "chainbell.toml").read_text())["chains"]["anvil"]


def test_an_unknown_command_is_wrong_usage(tmp_path: Path) -> None:
    done = chainbell("bogus", cwd=tmp_path)
    assert done.returncode == 2
    assert "No such command" in done.stderr


@pytest.mark.parametrize("is_demo", [False, True])
def test_the_file_that_init_writes_is_accepted(tmp_path: Path, is_demo: bool) -> None:
    file = tmp_path / "chainbell.toml"
    file.write_text(template(is_demo=is_demo))
    assert load_settings(file).chains


def test_a_new_file_holds_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "chainbell.toml"
    file.write_text(template())
    written = load_settings(file)
    file.write_text("")
    default = load_settings(file)
    for section in ("database", "secrets", "api", "notifier"):
        assert getattr(written, section) == getattr(default, section)
    bare = ChainSettings(nodes=written.chains["ethereum"].nodes)
    assert written.chains["ethereum"] == bare


def test_every_key_is_in_the_file_that_init_writes_and_every_example_is_accepted(tmp_path: Path) -> None:
    lines = template().splitlines()
    uncommented = "\n".join(line.removeprefix("# ") if is_setting(line.removeprefix("# ")) else "" for line in lines)
    found = tomllib.loads(uncommented)
    chain = found["chains"]["ethereum"]
    for section, keys in found.items():
        if section != "chains":
            assert set(keys) == set(Settings.model_fields[section].annotation.model_fields)  # type: ignore[union-attr]
    assert set(found) == set(Settings.model_fields)
    assert set(chain) == set(ChainSettings.model_fields)
    assert set(chain["nodes"][0]) == set(NodeSettings.model_fields)
    assert set(chain["credit"][0]) == set(CreditRuleSettings.model_fields)
    assert set(chain["assets"][0]) == set(AssetSettings.model_fields)
    file = tmp_path / "chainbell.toml"
    file.write_text(uncommented)
    assert load_settings(file).chains["ethereum"].credit_at == 12


def is_setting(line: str) -> bool:
    """True for a line of TOML, False for a sentence."""
    return line.startswith(("[", "]", "    {")) or " = " in line.split('"')[0][:30]
