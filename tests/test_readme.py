"""What the README says is true: its examples run, its files exist, its commands parse."""

import json
import re
import shlex
from pathlib import Path

import pytest

from posemodel.cli import parse_train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_python_examples_run(code):
    exec(compile(code, "README.md", "exec"), {})


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    missing = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert missing == []


def test_train_commands_parse(capsys):
    commands = re.findall(r"python -m posemodel\.train([^#`\n]*)", README)
    assert len(commands) >= 4
    for words in commands:
        try:
            parse_train(shlex.split(words))
        except SystemExit as stop:
            assert stop.code == 0, words


def test_the_two_commands_stand_at_the_top():
    block = re.search(r"```bash\n(.*?)```", README, re.DOTALL).group(1).splitlines()
    assert block[0].startswith("pip install -e . && python -m posemodel.train")
    assert block[1].startswith("pip install -e '.[test]' && python -m pytest")


def test_numbers_of_the_results_table_are_the_committed_evaluation():
    row = json.loads((ROOT / "docs" / "quick.json").read_text())
    table = README[README.index("## Results"):]
    for key in ("copy_l1", "warped_l1", "refined_l1", "epe_zero", "epe_visible"):
        assert f"{row[key]:.2f}" in table, key
    for low, high in (("warped_l1", "copy_l1"), ("refined_l1", "copy_l1"),
                      ("epe_visible", "epe_zero")):
        assert f"{100 * row[low] / row[high]:.0f} %" in table, low
