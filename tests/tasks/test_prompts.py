from pathlib import Path

import pytest

from flowopd.errors import FlowOPDError
from flowopd.tasks import PromptRecord, read_prompts, take


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('a red circle\n\n  two "blue" squares, ü \n', encoding="utf-8")
    assert read_prompts(file, "compose") == [
        PromptRecord("a red circle", "compose"),
        PromptRecord('two "blue" squares, ü', "compose"),
    ]


def test_a_json_line_has_task_tag_and_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(
        '{"prompt": "a", "tag": "colors", "include": [{"class": "cup"}]}\n'
        '\n{"prompt": "b", "task": "text", "target": "HI"}\n'
    )
    assert read_prompts(file, "compose") == [
        PromptRecord("a", "compose", "colors", {"include": [{"class": "cup"}]}),
        PromptRecord("b", "text", "", {"target": "HI"}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("p.txt", "", "is empty; it needs a prompt on each line"),
        ("p.txt", " \n\n", "is empty"),
        ("p.jsonl", "\n", "is empty"),
        ("p.jsonl", '{"prompt": "a"}\n\n{"prompt": \n', "p.jsonl, line 3 is not valid JSON"),
        ("p.jsonl", '{"prompt": "a"}\n["b"]\n', "p.jsonl, line 2 is no JSON object"),
        ("p.jsonl", '{"promt": "a"}\n', 'p.jsonl, line 1 has no "prompt"'),
        ("p.jsonl", '{"prompt": " "}\n', 'p.jsonl, line 1 has no "prompt"'),
        ("p.jsonl", '{"prompt": "a", "tag": 1}\n', '"task" and "tag" have to be texts'),
        ("p.csv", "a\n", "ends in neither .txt"),
    ],
)
def test_wrong_files(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(FlowOPDError) as caught:
        read_prompts(tmp_path / name)
    assert sentence in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FlowOPDError, match="There is no prompt file"):
        read_prompts(tmp_path / "none.txt")
    with pytest.raises(FlowOPDError, match="cannot be read"):
        read_prompts(tmp_path)


def test_take_goes_through_the_tags_in_turn() -> None:
    records = [PromptRecord(str(i), tag=tag) for i, tag in enumerate("aaaabbc")]
    assert [record.prompt for record in take(records, 4)] == ["0", "1", "4", "6"]
    assert [record.prompt for record in take(records, 6)] == ["0", "1", "2", "4", "5", "6"]
    assert take(records, None) == take(records, 7) == take(records, 99) == records


def test_take_without_tags_is_the_first() -> None:
    records = [PromptRecord(str(i)) for i in range(5)]
    assert take(records, 2) == records[:2]
