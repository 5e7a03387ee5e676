"""The program as a whole: version, help, mistakes, defects."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gossamer.cli import main as main_module
from gossamer.cli.main import DEFECT, app, main

COMMANDS = ("compress", "compress-weights", "inspect", "verify", "report", "demo")


def test_version():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.stdout.startswith("gossamer ")


@pytest.mark.parametrize("arguments", [["--help"], ["-h"]])
def test_help_lists_the_commands_and_exit_codes(arguments):
    shown = CliRunner().invoke(app, arguments).stdout
    for command in COMMANDS:
        assert command in shown
    assert "Exit codes" in shown


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_json_and_debug(command):
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    for option in ("--json", "--debug"):
        assert option in done.stdout


def test_unknown_command_suggests_the_nearest():
    done = CliRunner().invoke(app, ["compres"])
    assert done.exit_code == 2
    assert "compress" in done.stderr


def test_missing_option():
    done = CliRunner().invoke(app, ["compress", "--model", "a:b"])
    assert done.exit_code == 2
    assert "--data" in done.stderr


def test_module_runs_as_the_program():
    done = subprocess.run([sys.executable, "-m", "gossamer", "--version"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gossamer ")


def test_a_defect_of_ours_shows_its_traceback_and_has_its_own_exit_code(monkeypatch, capsys):
    def broken() -> None:
        raise AttributeError("ours")

    monkeypatch.setattr(main_module, "app", broken)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == DEFECT
    shown = capsys.readouterr().err
    assert "AttributeError: ours" in shown
    assert "a defect in gossamer; please report it" in shown
