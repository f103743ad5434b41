"""The README's first screen: the two commands word for word, and no more than a reader takes in.

Its examples, links and commands are tested with those of all pages (`test_docs.py`), its figures in
`test_figures.py`.
"""

import re
from pathlib import Path

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def test_the_two_commands_stand_at_the_top():
    block = re.search(r"```bash\n(.*?)```", README, re.DOTALL).group(1).splitlines()
    assert block[0].startswith("pip install -e . && python -m posemodel.train")
    assert block[1].startswith("pip install -e '.[test]' && python -m pytest")


def test_the_readme_leaves_the_rest_to_its_pages():
    assert len(README.splitlines()) <= 150
    first = README[: README.index("\n## ")]
    assert "![" in first and "```python" in first
