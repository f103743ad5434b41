"""Folders of ours: claimed once, locked once, and nobody else's is touched."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posemodel.runtime.errors import UserError
from posemodel.runtime.folder import OwnFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own(tmp_path):
    return OwnFolder(tmp_path / "deep" / "folder", "about.json", "study of snails")


def test_claim_makes_the_folder_and_knows_it_again(own):
    for _ in range(2):
        own.claim({"size": (3, 4), "seed": 1})
    assert [path.name for path in own.path.iterdir()] == ["about.json"]
    with own.reading() as values:
        assert values == {"size": [3, 4], "seed": 1}


def test_of_several_claims_at_a_time_one_is_written(own):
    code = ("import sys; from pathlib import Path; from posemodel.runtime.folder import OwnFolder\n"
            "sys.stdin.read()\n"
            "OwnFolder(Path(sys.argv[1]), 'about.json', 'x').claim({'by': sys.argv[2]})")
    claims = [subprocess.Popen([sys.executable, "-c", code, str(own.path), name], cwd=ROOT,
                               stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
              for name in ("a", "a", "b")]
    for claim in claims:
        claim.stdin.close()
    codes = [claim.wait() for claim in claims]
    winner = json.loads(own.record.read_text())["by"]
    assert [code == 0 for code in codes] == [name == winner for name in ("a", "a", "b")]
    for claim, code in zip(claims, codes, strict=True):
        assert code == 0 or "holds another x (by: " in claim.stderr.read()


def test_other_values_are_named(own):
    own.claim({"seed": 1, "plan": {"long": "x" * 99}})
    with pytest.raises(UserError, match=r"another study of snails \(other plan; seed: 1 there, 2 "):
        own.claim({"seed": 2, "plan": {}})


@pytest.mark.parametrize("left, ours", [
    (["lock", "about.json.tmp"], True), (["lock-12", "about.json.77.tmp"], True),
    (["locked.txt"], False), (["lock", "thesis.txt"], False), (["other.tmp"], False)])
def test_what_a_killed_start_leaves_is_no_foreign_thing(own, left, ours):
    own.path.mkdir(parents=True)
    for name in left:
        (own.path / name).touch()
    if ours:
        own.lock("drawing").close()
        return
    for use in (lambda: own.lock("drawing"), lambda: own.claim({})):
        with pytest.raises(UserError, match="not empty and is no study of snails .no about.json"):
            use()
    assert sorted(path.name for path in own.path.iterdir()) == sorted(left)


@pytest.mark.parametrize("use", [lambda values: values["none"], lambda values: values["seed"].x])
def test_records_of_another_kind_are_one_line(own, use):
    own.claim({"seed": 1})
    with pytest.raises(UserError, match="damaged or not of this program"), own.reading() as values:
        use(values)
