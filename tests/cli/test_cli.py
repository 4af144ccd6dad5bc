"""The internvl-chat command: wrong use, errors in a few lines."""

from __future__ import annotations

import pytest

from internvl_chat import __version__
from internvl_chat.cli import main


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["nosuch"], "No such command 'nosuch'. See"),
        (["data", "preview"], "Missing argument 'meta'. See"),
        (["data", "preview", "--nosuch"], "--nosuch"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    argv: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1


def test_without_arguments_it_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert "train" in captured.out
    assert "error" not in captured.err


def test_a_users_error_has_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "preview", "no/such/meta.json", "--model", "no/such/model"]) in (2, 3)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "no/such" in error


def test_the_version_is_a_release_number() -> None:
    assert __version__.count(".") == 2
