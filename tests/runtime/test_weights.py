"""Published weights: where they are looked for, what is refused, what is recorded."""

import hashlib
import socket
import struct

import pytest
import torch

from posemodel.runtime import backbones
from posemodel.runtime import weights as published_weights
from posemodel.runtime.backbones import ALEXNET, VGG16, VGG19
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import VARIABLE, PublishedWeights, read_weights, tensors_sha256
from tests.published import tensors, without_network, write

FILE = PublishedWeights(what="the test", url="https://example.org/some.pth", plain="plain.pth",
                        otherwise="do without")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return without_network(monkeypatch, tmp_path / "hub")


def refusal(call, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_flags_folder_then_the_variables_then_the_cache(hub, tmp_path, monkeypatch):
    own, other = tmp_path / "own", tmp_path / "other"
    for folder in (own, other):
        folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(other))
    assert FILE.look(own) is None and FILE.missing(own)
    # Each that is added here comes before those that are there already.
    for path in (hub / "some.pth", other / "plain.pth", other / "some.pth", own / "plain.pth",
                 own / "some.pth"):
        path.touch()
        assert FILE.look(own) == path and FILE.find(own) == path and FILE.missing(own) == ""
    assert FILE.look() == other / "some.pth"
    monkeypatch.setenv(VARIABLE, "")
    assert FILE.look() == hub / "some.pth"


def test_the_cache_has_published_names_alone(hub):
    (hub / "plain.pth").touch()
    assert FILE.look() is None


def test_what_is_missing_is_said_with_all_places(hub, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    line = FILE.missing()
    assert f"no some.pth or plain.pth in {tmp_path}, {hub}" in line and "--weights" in line
    line = refusal(FILE.find)
    assert "the test needs some.pth" in line and "(no network)" in line and "do without" in line


@pytest.mark.parametrize("origin", ["flag", "variable"])
def test_a_folder_that_is_not_there(origin, hub, monkeypatch):
    (hub / "some.pth").touch()
    if origin == "variable":
        monkeypatch.setenv(VARIABLE, "/nowhere")
    folder = "/nowhere" if origin == "flag" else ""
    for call in (FILE.look, FILE.missing, FILE.find):
        assert refusal(call, folder).startswith(
            "--weights /nowhere: no such folder" if folder
            else "POSEMODEL_WEIGHTS=/nowhere: no such folder")


def test_a_download_goes_to_the_cache_with_its_hash(hub, tmp_path, monkeypatch):
    asked = []

    def download(url, path, hash_prefix):
        asked.append((url, path, hash_prefix))
        torch.save({}, path)  # what a server sends whose file is not the one of that name

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):  # the second time it lies in the cache
        assert "vgg19-dcbb9e9d.pth: its SHA-256 begins with" in refusal(VGG19.load, tmp_path)
    assert asked == [(VGG19.url, str(hub / "vgg19-dcbb9e9d.pth"), "dcbb9e9d")]


def test_a_server_that_falls_silent_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(published_weights, "_SILENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/some.pth"
        file = PublishedWeights(what="the test", url=url)
        assert "timed out" in refusal(file.find)
    assert socket.getdefaulttimeout() is None and not list(tmp_path.rglob("*.pth"))


def test_a_name_with_a_hash_is_held_to_it(tmp_path, hub):
    file = write(tmp_path, ALEXNET)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    network = backbones._backbone("AlexNet", "alexnet", f"alexnet-{digest[:8]}.pth")
    named = file.rename(tmp_path / network.name)
    network.load(tmp_path)
    with named.open("ab") as handle:
        handle.write(b"more")
    assert "delete it and fetch it again" in refusal(network.load, tmp_path)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", b"PK\x03\x04"])
def test_other_files_are_no_weights(content, tmp_path):
    file = tmp_path / "some.pth"
    file.write_bytes(content)
    assert "no file of PyTorch weights" in refusal(read_weights, file)
    assert "cannot read the weights" in refusal(read_weights, tmp_path / "absent.pth")
    torch.save([1], file)
    assert "expected a dict" in refusal(read_weights, file)


def test_a_single_wrong_byte_is_found(tmp_path, hub):
    file = write(tmp_path, ALEXNET)
    ALEXNET.load(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    torch.load(file, weights_only=True)  # torch itself does not notice
    assert "damaged" in refusal(ALEXNET.load, tmp_path)


@pytest.mark.parametrize("name, value, says", [
    ("features.10.bias", None, "it has no features.10.bias"),
    ("features.0.weight", torch.zeros(64, 3, 3, 3), "is 64 x 3 x 3 x 3 and not 64 x 3 x 11 x 11"),
    ("features.0.bias", torch.zeros(64, dtype=torch.float16), "is not a tensor of float32"),
    ("features.0.bias", torch.full((64,), torch.nan), "has values that are not finite"),
    ("features.13.bias", torch.zeros(3), "features.13.bias belongs to another network")])
def test_other_tensors_are_refused_by_name(name, value, says, tmp_path, hub):
    file = write(tmp_path, ALEXNET, **{name: value})
    line = refusal(ALEXNET.load, tmp_path)
    assert line.startswith(str(file)) and says in line
    assert "expected torchvision's weights of AlexNet" in line and "--weights" in line


def test_another_network_under_its_name_is_refused(tmp_path, hub):
    # The first seven convolutions of VGG-16 and VGG-19 have the same shapes.
    write(tmp_path, VGG19, VGG16.plain)
    assert "features.16.weight" in refusal(VGG16.load, tmp_path) or \
        "features.17.weight" in refusal(VGG16.load, tmp_path)


def test_a_classifier_is_not_needed_and_does_no_harm(tmp_path, hub):
    write(tmp_path, ALEXNET, **{"classifier.1.weight": torch.zeros(2, 2)})
    found = ALEXNET.load(tmp_path)
    assert list(found) == [f"features.{layer}.{kind}" for layer in (0, 3, 6, 8, 10)
                           for kind in ("weight", "bias")]
    assert all(torch.equal(found[name], value) for name, value in tensors(ALEXNET).items())


def test_the_hash_is_of_names_shapes_and_values_in_their_order():
    values = {"a": torch.tensor([[1.0, -2.0]]), "b": torch.tensor(0.5)}
    expected = hashlib.sha256(b"a 1x2\n" + struct.pack("<2f", 1, -2) + b"b \n"
                              + struct.pack("<f", 0.5)).hexdigest()
    assert tensors_sha256(values) == expected
    other = {expected, tensors_sha256({"c": values["a"], "b": values["b"]}),
             tensors_sha256({"a": values["a"].T, "b": values["b"]}),
             tensors_sha256({"b": values["b"], "a": values["a"]}),
             tensors_sha256({"a": values["a"], "b": values["b"] + 1e-7})}
    assert len(other) == 5


def test_the_hash_is_that_of_no_container(tmp_path, hub):
    write(tmp_path, ALEXNET)
    (tmp_path / "old").mkdir()
    torch.save(dict(reversed(tensors(ALEXNET).items())), tmp_path / "old" / ALEXNET.plain,
               _use_new_zipfile_serialization=False)
    one, other = (tensors_sha256(ALEXNET.load(folder)) for folder in (tmp_path, tmp_path / "old"))
    assert one == other == tensors_sha256(tensors(ALEXNET))
    spread = {name: value.contiguous(memory_format=torch.channels_last) if value.ndim == 4
              else value for name, value in tensors(ALEXNET).items()}
    assert tensors_sha256(spread) == one
