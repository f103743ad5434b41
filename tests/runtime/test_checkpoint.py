"""Checkpoints under real faults: kills at every step of a save, broken files, hostile ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from posemodel.runtime import checkpoint
from posemodel.runtime.errors import UserError

ROOT = Path(__file__).parents[2]


def save(directory: Path, step: int) -> Path:
    weights = {"averaged": {"w": torch.full((3, 2), float(step))},
               "generator": {"w": torch.full((3, 2), -float(step)), "n": torch.tensor(step)}}
    return checkpoint.save(directory, step, weights=weights,
                           state={"adam": {"step": step, "m": torch.ones(4)}, "lr": [0.1, None]},
                           config={"steps": 9})


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_everything_comes_back(tmp_path):
    save(tmp_path, 5)
    found = checkpoint.load_latest(tmp_path)
    assert (found.step, found.path.name, found.skipped) == (5, "step_000005", [])
    assert torch.equal(found.weights["averaged"]["w"], torch.full((3, 2), 5.0))
    assert found.weights["generator"]["n"].item() == 5
    assert found.state["adam"]["step"] == 5 and found.state["lr"] == [0.1, None]
    assert (tmp_path / "LATEST").read_text() == "step_000005\n"
    assert names(tmp_path / "step_000005") == [
        "averaged.safetensors", "generator.safetensors", "meta.json", "train.pt"]


def test_weights_carry_the_config(tmp_path):
    with safe_open(save(tmp_path, 5) / "averaged.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"]) == {"steps": 9}


def test_none_where_there_is_none(tmp_path):
    assert checkpoint.load_latest(tmp_path) is None
    assert checkpoint.load_latest(tmp_path / "nowhere") is None


def test_shared_strided_and_empty_tensors(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {"a": base, "b": base, "view": base[1:], "strided": base.t(),
               "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
               "empty": torch.zeros(0, 3), "flag": torch.tensor(True),
               "expanded": torch.ones(1).expand(5), "half": torch.ones(2, dtype=torch.bfloat16)}
    checkpoint.save(tmp_path, 1, weights={"net": tensors}, state={}, config={})
    for name, value in checkpoint.load_latest(tmp_path).weights["net"].items():
        assert torch.equal(value, tensors[name]) and value.dtype == tensors[name].dtype


def test_keeps_the_two_newest(tmp_path):
    for step in range(1, 6):
        save(tmp_path, step)
    assert names(tmp_path) == ["LATEST", "step_000004", "step_000005"]


def test_broken_ones_do_not_count_as_kept(tmp_path):
    for step in (1, 2):
        save(tmp_path, step)
    (tmp_path / "step_000002" / "train.pt").write_bytes(b"")
    save(tmp_path, 3)
    # 1 is the second good one: deleting it would leave only the newest.
    assert names(tmp_path) == ["LATEST", "step_000001", "step_000002", "step_000003"]
    save(tmp_path, 4)
    assert names(tmp_path) == ["LATEST", "step_000003", "step_000004"]


def test_same_step_again_replaces(tmp_path):
    save(tmp_path, 1)
    (save(tmp_path, 2) / "averaged.safetensors").write_bytes(b"broken")
    save(tmp_path, 2)
    assert names(tmp_path) == ["LATEST", "step_000001", "step_000002"]
    assert checkpoint.load_latest(tmp_path).step == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage, says", [
    (lambda at: truncate(at / "averaged.safetensors"), "averaged.safetensors has"),
    (lambda at: flip_a_bit(at / "averaged.safetensors"), "averaged.safetensors has changed"),
    (lambda at: flip_a_bit(at / "train.pt"), "train.pt has changed"),
    (lambda at: (at / "generator.safetensors").unlink(), "generator.safetensors: No such file"),
    (lambda at: (at / "meta.json").unlink(), "meta.json is missing"),
    (lambda at: truncate(at / "meta.json"), "meta.json is unreadable"),
    (lambda at: (at / "meta.json").write_text("[]"), "meta.json is unreadable"),
    (lambda at: (at / "meta.json").write_text('{"files": {}}'), "names no train.pt")])
def test_damage_is_skipped_said_and_left_alone(tmp_path, damage, says):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    before = names(tmp_path), names(tmp_path / "step_000002")
    found = checkpoint.load_latest(tmp_path)
    assert found.step == 1 and len(found.skipped) == 1 and "step_000002" in found.skipped[0]
    assert says in found.skipped[0] and "\n" not in found.skipped[0]
    assert (names(tmp_path), names(tmp_path / "step_000002")) == before


def test_nothing_usable_is_an_error_and_deletes_nothing(tmp_path):
    truncate(save(tmp_path, 1) / "train.pt")
    with pytest.raises(UserError, match=r"step_000001 .*train\.pt.*nothing was deleted"):
        checkpoint.load_latest(tmp_path)
    assert "step_000001" in names(tmp_path)


def test_code_in_train_pt_is_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    save(tmp_path, 1)
    path = save(tmp_path, 2)
    torch.save({"adam": Malicious()}, path / "train.pt")
    # What someone who tampers would do: make meta.json agree.
    meta = json.loads((path / "meta.json").read_text())
    content = (path / "train.pt").read_bytes()
    meta["files"]["train.pt"] = {"bytes": len(content), "sha256": checkpoint._hash(content)}
    (path / "meta.json").write_text(json.dumps(meta))
    found = checkpoint.load_latest(tmp_path)
    assert found.step == 1 and "step_000002" in found.skipped[0]
    assert not (tmp_path / "pwned").exists()


def test_files_outside_are_not_read(tmp_path):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (path / "meta.json").write_text(json.dumps(
        {"files": {"train.pt": {"bytes": 1, "sha256": ""},
                   "../step_000001/train.pt": {"bytes": 1, "sha256": ""}}}))
    assert checkpoint.load_latest(tmp_path).step == 1


def test_state_that_could_not_be_read_back_is_refused_at_once(tmp_path):
    save(tmp_path, 1)
    with pytest.raises(Exception, match="[Uu]npickl|[Ww]eights"):
        checkpoint.save(tmp_path, 2, weights={}, state={"path": tmp_path}, config={})
    assert names(tmp_path) == ["LATEST", "step_000001"]


def test_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write checkpoint"):
        save(tmp_path / "file" / "checkpoints", 1)


def test_full_disk_leaves_the_earlier_ones(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(UserError, match="No space left on device; earlier checkpoints are as"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["LATEST", "step_000001"]


def test_leftovers_are_swept_by_the_next_save(tmp_path):
    (tmp_path / ".tmp-old").mkdir()
    (tmp_path / ".tmp-old" / "train.pt").write_bytes(b"half")
    assert checkpoint.load_latest(tmp_path) is None
    save(tmp_path, 1)
    assert names(tmp_path) == ["LATEST", "step_000001"]


# The child is killed just before its n-th call that changes the file system, for every n there is.
# One process imports torch and forks, so that a kill costs milliseconds.
_KILLER = '''
import os, shutil, signal, sys
from pathlib import Path
import torch
from posemodel.runtime import checkpoint

torch.set_num_threads(1)
root = Path(sys.argv[1])
CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"}

def save(step):
    value = float(step)
    checkpoint.save(root, step, weights={"net": {"w": torch.full((1000,), value)}},
                    state={"value": value}, config={})

def child(step, deadly):
    calls = 0
    def hook(event, arguments):
        nonlocal calls
        # rmtree names what it removes relative to an open folder: no path to compare there.
        ours = event in ("os.remove", "os.rmdir") or str(root) in str(arguments[:2])
        reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CALLS and ours and not reads:
            calls += 1
            if calls == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    save(step)
    os._exit(0)

def survives(step, deadly):
    """Kill a save of `step` at call `deadly`; whether there was such a call."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(before, root)
    pid = os.fork()
    if pid == 0:
        child(step, deadly)
    status = os.waitpid(pid, 0)[1]
    found = checkpoint.load_latest(root)
    assert found.step in (2, 3) and found.state["value"] == found.step, (deadly, found.step)
    assert (found.weights["net"]["w"] == found.step).all()
    assert not found.skipped, found.skipped
    save(4)  # and the next save cleans up and works
    assert checkpoint.load_latest(root).step == 4
    left = sorted(path.name for path in root.iterdir())
    assert left[0] == "LATEST" and left[-1] == "step_000004" and len(left) == 3, left
    return os.WIFSIGNALED(status)

save(1)
save(2)
before = root.with_name("before")
root.rename(before)
for step in (3, 2):  # a new checkpoint, and one that takes the place of another
    deadly = 1
    while survives(step, deadly):
        deadly += 1
    print(deadly - 1)
'''


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_sigkill_at_every_moment_of_a_save(tmp_path):
    done = subprocess.run([sys.executable, "-c", _KILLER, str(tmp_path / "checkpoints")],
                          cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert all(int(kills) >= 10 for kills in done.stdout.split()), done.stdout
