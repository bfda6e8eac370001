"""docs/math.md links to files that are there, and names what they define."""

import ast
import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "math.md"
LINK = re.compile(r"\[(`?)([^\]`]+)`?\]\((\.\./[^)]+)\)")


def test_every_link_leads_to_what_it_names():
    links = LINK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(links) > 10
    for is_name, name, target in links:
        file = PAGE.parent / target
        assert file.is_file(), target
        if is_name and target.startswith("../src"):
            defined = re.search(rf"^(def|class) {name}\b", file.read_text(encoding="utf-8"), re.M)
            assert defined, f"{target} does not define {name}"


def test_equations_one_to_six_are_there_and_cited_by_the_code():
    page = PAGE.read_text(encoding="utf-8")
    source = PAGE.parents[1] / "src" / "flowopd" / "flow"
    cited = {
        int(number)
        for file in source.glob("*.py")
        for text in docstrings(file)
        for number in re.findall(r"Equation \((\d+)\)", text)
    }
    assert cited == {1, 2, 3, 4, 5, 6}
    for number in cited:
        assert rf"\tag{{{number}}}" in page


def test_equations_of_learning_are_there_and_cited_by_the_losses():
    page = PAGE.read_text(encoding="utf-8")
    source = PAGE.parents[1] / "src" / "flowopd" / "algorithms"
    found = " ".join(text for file in source.glob("*.py") for text in docstrings(file))
    for number in (7, 8, 9, 10, 13, 14, 16, 17):
        assert f"({number})" in found
        assert rf"\tag{{{number}}}" in page


def docstrings(file: Path) -> list[str]:
    """Those of a module's functions and classes, not its own."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
