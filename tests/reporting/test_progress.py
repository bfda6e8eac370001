import pytest

from flowopd.reporting import progress as module
from flowopd.reporting.progress import progress


def test_short_work_off_a_terminal_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("drawing", 10) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_long_work_off_a_terminal_says_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 10.0, 35.0, 40.0, 70.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("drawing", 4) as advance:
        for _ in range(4):
            advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "drawing: 2/4 images in 35 s",
        "drawing: 4/4 images in 70 s",
    ]


def test_a_terminal_has_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress("drawing", 3) as advance:
        advance(3)
    assert "drawing" in capsys.readouterr().err
