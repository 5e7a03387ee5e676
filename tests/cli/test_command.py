"""How commands end: exit codes, one sentence for errors, nothing but JSON on standard output."""

import json as json_module
from pathlib import Path

import typer
from typer.testing import CliRunner

from gossamer.cli.command import command, show, show_json
from gossamer.errors import DataError


def run(body, *arguments: str):
    app = typer.Typer()
    app.command()(command(body))
    return CliRunner().invoke(app, arguments)


def test_all_well():
    done = run(lambda: lambda: show("fine") or True)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "fine\n", "")


def test_budget_missed():
    assert run(lambda: lambda: False).exit_code == 1


def test_an_error_is_one_sentence_without_traceback():
    def body(debug: bool = False):
        raise DataError("the data [bold]is[/bold] empty; " + "give more of it " * 20)

    done = run(body)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr == "Error: the data [bold]is[/bold] empty; " + "give more of it " * 20 + "\n"


def test_debug_shows_the_traceback():
    def body(debug: bool = False):
        raise DataError("empty")

    done = run(body, "--debug")
    assert done.exit_code == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.endswith("Error: empty\n")


def test_interrupt_says_how_to_resume():
    def body(out: Path = Path("there"), fresh: bool = False):
        raise KeyboardInterrupt

    done = run(body)
    assert done.exit_code == 130
    assert "Run the same command again: it goes on from what is kept in there." in done.stderr


def test_interrupt_where_nothing_is_kept():
    def body():
        raise KeyboardInterrupt

    assert "to start anew" in run(body).stderr


def test_what_user_code_prints_stays_out_of_the_json():
    def body():
        print("hello from the user's loader")
        return lambda: show_json({"a": 1}) or True

    done = run(body)
    assert json_module.loads(done.stdout) == {"a": 1}
    assert done.stdout.count("\n") == 1
    assert "hello" in done.stderr


def test_an_error_while_printing_is_told_too():
    def body():
        def report() -> bool:
            raise DataError("late")

        return report

    done = run(body)
    assert (done.exit_code, done.stderr) == (2, "Error: late\n")


def test_json_has_no_nan_and_no_infinity(capsys):
    show_json({"a": float("nan"), "b": [(1.5, -float("inf"))], "c": {"d": "text"}})
    assert capsys.readouterr().out == '{"a": null, "b": [[1.5, null]], "c": {"d": "text"}}\n'
