"""What the documentation says is true: examples run, commands parse, links lead somewhere, no name
is left out.

The Python blocks of a page run in order in one namespace; the claims are their assertions.
"""

import re
import shlex
import sys
import traceback
from pathlib import Path

import pytest
import torch

import pose_kernels
from posemodel.config.flags import parse_train

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNNABLE = [*(ROOT / "docs" / f"{name}.md" for name in (
    "operators", "derivatives", "precision", "guided-readout", "other-models", "compile-export",
    "guide")), ROOT / "README.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def python_blocks(page: Path) -> list[tuple[int, str]]:
    """(line of the first statement, code) of every ```python block."""
    text = page.read_text()
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in BLOCK.finditer(text)]


def run_blocks(page: Path) -> None:
    namespace = {"__name__": page.stem.replace("-", "_")}
    for line, code in python_blocks(page):
        # Pushed down to where it stands, so that every line number is the page's.
        program = compile("\n" * (line - 1) + code, str(page), "exec")
        try:
            exec(program, namespace)
        except Exception as error:
            steps = traceback.extract_tb(error.__traceback__)
            at = [step for step in steps if step.filename == str(page)][-1]
            pytest.fail(f"{name_of(page)}:{at.lineno} (block at line {line}), at `{at.line}`: "
                        f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes
    torch.manual_seed(0)
    assert python_blocks(page)
    try:
        run_blocks(page)
    finally:
        if "torch._dynamo" in sys.modules:  # what a page compiled is nobody else's
            torch.compiler.reset()


def test_a_wrong_example_is_found_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n```python\nx = 1\n```\n\ntext\n\n```python\n\nassert x == 2\n```\n")
    with pytest.raises(pytest.fail.Exception,
                       match=r"page.md:11 \(block at line 10\), at `assert x == 2`: Asse"):
        run_blocks(page)


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "docs"], ids=name_of)
def test_examples_fit_a_hundred_columns(page):
    long = [line for first, code in python_blocks(page)
            for line, text in enumerate(code.splitlines(), first) if len(text) > 100]
    assert long == []


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """GitHub's names of the headings."""
    titles = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_every_public_name_has_its_section():
    text = (ROOT / "docs" / "operators.md").read_text()
    sections = re.findall(r"^#+ `(\w+)`$", text, re.MULTILINE)
    assert sorted(sections) == sorted(pose_kernels.__all__)


def train_commands(page: Path) -> list[str]:
    """What follows `-m posemodel.train` on a page, in blocks and in prose."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"-m posemodel\.train\b([^#`\n]*)", text)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_train_commands_parse(page, capsys):
    for words in train_commands(page):
        try:
            parse_train(shlex.split(words))
        except SystemExit as stop:
            assert stop.code == 0, words


def test_train_commands_are_found():
    assert len(train_commands(ROOT / "README.md")) >= 4
    assert any("--data.image-size 128 128" in words
               for words in train_commands(ROOT / "docs" / "guide.md"))


def test_flags_of_all_pages_exist(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--help-all"])
    known = set(re.findall(r"--(?:data|model|loss|optim)\.[\w-]+", capsys.readouterr().out))
    unknown = [(name_of(page), flag) for page in PAGES
               for flag in re.findall(r"--(?:data|model|loss|optim)\.[a-z0-9-]*[a-z0-9]",
                                      page.read_text()) if flag not in known]
    assert unknown == []
