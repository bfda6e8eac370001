"""docs/rewards.md says what the scorers say of themselves, and its example works."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from reward_table import ELSEWHERE, lines

from flowopd import plugins
from flowopd.rewards.settings import ScorerSettings, ScorerSpec

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "examples" / "sharpness.py"

installed = pytest.mark.skipif(
    not plugins.found("scorers"), reason="flowopd is not installed here, so it has no entry points"
)


@installed
def test_the_table_is_true() -> None:
    found = lines()
    missing = [line for line in found.values() if f"\n{line}\n" not in PAGE]
    assert missing == [], "run tests/rewards/reward_table.py for the lines as they have to be"
    ours = {*plugins.found("scorers"), *ELSEWHERE}
    assert all(f"\n| `{name}` |" in PAGE for name in ours)


@installed
def test_every_scorer_says_what_it_is() -> None:
    for name in set(plugins.found("scorers")) - ELSEWHERE:
        about = plugins.load_scorer(name).about
        assert about.licence, name
        assert about.cost, name


def test_the_keys_that_all_scorers_have_are_explained() -> None:
    shared = {*ScorerSpec.model_fields, *ScorerSettings.model_fields} - {"settings"}
    assert [key for key in shared if f"\n| `{key}` |" not in PAGE] == []


class TestExample:
    def test_it_is_the_one_on_the_page_and_short(self) -> None:
        text = EXAMPLE.read_text(encoding="utf-8")
        assert f"```python\n{text}```" in PAGE
        code = [line for line in text.splitlines() if line.strip()]
        assert len(code) <= 20

    def test_it_passes_the_check(self, tmp_path: Path) -> None:
        ended = flowopd("reward", "check", "examples/sharpness.py:Sharpness")
        assert ended.returncode == 0, ended.stderr
        assert "sharpness: good" in ended.stdout

    @installed
    def test_an_evaluation_uses_it(self, tmp_path: Path) -> None:
        (tmp_path / "prompts.txt").write_text("a red circle\n")
        (tmp_path / "protocol.yaml").write_text(
            "name: mine\nmodel: world\nprompts: [{path: prompts.txt}]\nsteps: 2\nguidance: 1.0\n"
            f"scorers: ['{EXAMPLE}:Sharpness']\nout: out\n"
        )
        ended = flowopd("eval", str(tmp_path / "protocol.yaml"), "--out", str(tmp_path / "out"))
        assert ended.returncode == 0, ended.stderr
        row = json.loads((tmp_path / "out" / "results.json").read_text())["rows"][0]
        assert 0 < row["metrics"]["sharpness"]["mean"] < 1


def flowopd(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowopd", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
