"""The scorer `ocr` on rendered texts: what it reads, from several threads and processes."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.evaluation.protocol import check_record
from flowopd.rewards.ocr import engine as engine_module
from flowopd.rewards.ocr.drawn import drawn_text
from flowopd.rewards.ocr.engine import DETECTION, READING, RECOGNITION, check_installed, engine
from flowopd.rewards.ocr.text import ocr_score, plain
from flowopd.rewards.settings import ScorerSpec
from flowopd.rewards.work.jury import Jury
from flowopd.tasks.prompts import PromptRecord
from rendered_text import Sign, missing_fonts, sign

pytest.importorskip("rapidocr", reason="the extra `ocr` is not installed")

SHOWN = 6
SAMPLE = range(24, 48)
"""Of the rendered texts; all twelve fonts are among them."""
NOTHING_ELSE = 17
"""Of the sample, of which nothing but the text has to be read; in the others marks of the ground
may be read as letters."""


@pytest.fixture(scope="module")
def shown() -> list[Sign]:
    """In the fonts that matplotlib brings."""
    return [sign(number, system_fonts=False) for number in range(SHOWN)]


@pytest.fixture(scope="module")
def records(shown: list[Sign]) -> list[PromptRecord]:
    return [PromptRecord(f'a sign that says "{one.text}"', "ocr") for one in shown]


@pytest.fixture(scope="module")
def alone(shown: list[Sign], records: list[PromptRecord]) -> list[float | None]:
    """The scores of the scorer itself, one picture after the other."""
    images = np.stack([one.image for one in shown])
    scores = plugins.load_scorer("ocr").score(images, records)
    return [score.values["ocr"] for score in scores]


def test_rendered_texts_are_read(alone: list[float | None]) -> None:
    """All of these; of 500, benchmarks/ocr_reading.py tells."""
    assert alone == [1.0] * SHOWN


@pytest.mark.skipif(
    bool(missing_fonts()), reason=f"the fonts {', '.join(missing_fonts())} are not installed"
)
def test_a_sample_in_all_fonts_is_read() -> None:
    """At least 97%, which are all of so few."""
    shown = [sign(number) for number in SAMPLE]
    assert len({one.font for one in shown}) == 12
    read = ["".join(engine().read(one.image)) for one in shown]
    missed = [
        (one.text, text)
        for one, text in zip(shown, read, strict=True)
        if ocr_score(text, one.text) < 1
    ]
    assert missed == []
    exactly = sum(plain(text) == plain(one.text) for one, text in zip(shown, read, strict=True))
    assert exactly >= NOTHING_ELSE


def test_another_text_is_not_found(shown: list[Sign], records: list[PromptRecord]) -> None:
    images = np.stack([one.image for one in shown[:2]])
    scores = plugins.load_scorer("ocr").score(images, records[2:4])
    assert all(score.values["ocr"] < 0.6 for score in scores)


def test_nothing_to_read_scores_nothing() -> None:
    scorer = plugins.load_scorer("ocr")
    asked = PromptRecord('the word "hello"', "ocr")
    for image in (np.zeros((512, 512, 3), np.uint8), np.full((16, 24, 3), 255, np.uint8)):
        (score,) = scorer.score(image[None], [asked])
        assert score.values == {"ocr": 0.0}
        assert score.detail == {"read": []}


def test_colors_are_the_right_way_round() -> None:
    """Red on blue and blue on red read alike, and the engine is given BGR."""
    given = []

    class Looking:
        def __call__(self, image: np.ndarray) -> object:
            given.append(image)
            return type("Nothing", (), {"txts": None})

    started = engine_module.Engine.__new__(engine_module.Engine)
    started._engine, started._lock = Looking(), engine_module.threading.Lock()
    assert started.read(np.full((4, 4, 3), (255, 10, 0), np.uint8)) == []
    assert given[0][0, 0].tolist() == [0, 10, 255]


def test_threads_share_an_engine_and_read_the_same(
    shown: list[Sign], records: list[PromptRecord], alone: list[float | None]
) -> None:
    scorer = plugins.load_scorer("ocr")
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(scorer.score, one.image[None], [asked])
            for one, asked in zip(shown[:4], records[:4], strict=True)
        ]
        assert [call.result()[0].values["ocr"] for call in calls] == alone[:4]
    assert engine() is engine()


def test_four_processes_score_as_one(
    shown: list[Sign], records: list[PromptRecord], alone: list[float | None]
) -> None:
    spec = ScorerSpec.model_validate({"name": "ocr", "processes": 4})
    scorer = spec.load()
    images = np.stack([one.image for one in shown])
    with Jury([(spec, scorer)]) as jury:
        scores = jury.call(scorer, images, records).result()
    assert [score.values["ocr"] for score in scores] == alone


def test_the_self_check_finds_what_it_should() -> None:
    findings = plugins.load_scorer("ocr").self_check()
    assert all(finding.good for finding in findings)
    assert [finding.value for finding in findings] == pytest.approx([1, 13 / 14, 3 / 14, 0])


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(engine_module, "_started", engine_module._started.__wrapped__)
    assert engine().read(drawn_text("Open Late")) == ["Open Late"]


def test_the_engine_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from flowopd.rewards.ocr.drawn import drawn_text\n"
        "from flowopd.rewards.ocr.engine import engine\n"
        "print(engine().read(drawn_text('Open')), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "['Open'] False"


WITHOUT_EFFECT = {
    "Global": {"return_word_box", "return_single_char_box", "font_path", "log_level"}
    | {"model_root_dir"},
    "Det": {"engine_type", "lang_type", "model_type", "ocr_version", "task_type", "model_dir"},
    "Rec": {"engine_type", "lang_type", "model_type", "ocr_version", "task_type", "model_dir"},
}
"""Settings of rapidocr that change no reading, or not with a model whose file is given, as here."""


def test_all_that_a_reading_depends_on_is_said() -> None:
    """A version of rapidocr with another default, or another setting, is seen here."""
    import rapidocr
    import yaml

    file = Path(rapidocr.__file__).parent / "config.yaml"
    defaults = yaml.safe_load(file.read_text(encoding="utf-8"))
    wanted = {
        f"{part}.{key}": value
        for part, without in WITHOUT_EFFECT.items()
        for key, value in defaults[part].items()
        if key not in without | {"model_path", "rec_keys_path"}
    }
    assert wanted.pop("Global.use_cls") is not READING["Global.use_cls"]
    assert {key: value for key, value in READING.items() if key != "Global.use_cls"} == wanted


@pytest.mark.parametrize("name", [DETECTION, RECOGNITION])
@pytest.mark.parametrize("content", [None, b"no model"])
def test_a_broken_model_is_an_error_of_loading(
    name: str, content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = engine_module.model_file
    whole = there(name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    own = lambda wanted: tmp_path / name if wanted == name else there(wanted)  # noqa: E731
    monkeypatch.setattr(engine_module, "model_file", own)
    monkeypatch.setattr(engine_module, "_started", engine_module._started.__wrapped__)
    with pytest.raises(FlowOPDError, match=rf"'ocr' cannot be started: .*{name}.*Install it again"):
        plugins.load_scorer("ocr").load()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "find_spec", lambda _: None)
    with pytest.raises(
        FlowOPDError, match=r'rapidocr.*not installed: pip install "flowopd\[ocr\]"'
    ):
        check_installed()


def test_other_models_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "DETECTION", "PP-OCRv9_det_small.onnx")
    with pytest.raises(FlowOPDError, match="does not bring the model PP-OCRv9_det_small"):
        check_installed()


def test_a_prompt_without_quotes_is_refused_beforehand() -> None:
    asked = PromptRecord("a sign without a text", "ocr")
    with pytest.raises(FlowOPDError, match=r"'ocr' cannot score .*without a text.*no text in"):
        check_record("ocr", plugins.load_scorer("ocr"), asked)
