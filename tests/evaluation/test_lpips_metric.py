"""LPIPS: the package's values, from files of one's own; what is refused, what is recorded."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from posemodel.evaluation import lpips as lpips_metric
from posemodel.evaluation.lpips import BACKBONES, NO_WEIGHTS, NOT_ASKED, Lpips
from posemodel.runtime.errors import UserError
from posemodel.runtime.weights import VARIABLE, tensors_sha256
from tests.published import REAL, tensors, without_network, write

lpips = pytest.importorskip("lpips")
CPU = torch.device("cpu")
# The tensors with which LPIPS has its published example values.
KNOWN = {"alex": "dda88164057ff81a41b9f30c8242d8b1f18ab0a20b6a6e9df567b47772ee21b6",
         "vgg": "2522639d1b9c69469d31f91cde91ce221d6080812a756585b260bd86fbaa535e"}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return without_network(monkeypatch, tmp_path / "hub")


def images(count, size=(64, 48)):
    return torch.rand(count, 3, *size) * 2 - 1


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("net", BACKBONES)
def test_given_weights_give_what_the_package_gives(net, hub, tmp_path):
    # The package reads the cache, and all of a network: its classifier, too.
    write(tmp_path, BACKBONES[net])
    ours = Lpips(net, CPU, tmp_path)
    whole = {name: value for name, value in _classifier(net).items()}
    write(hub, BACKBONES[net], BACKBONES[net].name, **whole)
    package = lpips.LPIPS(net=net, version="0.1", verbose=False)
    a, b = images(3), images(3)
    expected = package(a, b).flatten()
    assert (expected > 0.001).all() and expected.unique().numel() == 3
    assert torch.allclose(ours(a, b), expected, rtol=1e-5) and ours(a, a).abs().max() == 0


@pytest.mark.parametrize("net", BACKBONES)
def test_no_random_numbers_are_drawn_for_what_is_thrown_away(net, hub, tmp_path):
    write(tmp_path, BACKBONES[net])
    before = torch.get_rng_state()
    metric = Lpips(net, CPU, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(weight.std() > 0 for weight in metric.network.parameters() if weight.ndim > 1)


def _classifier(net):
    """Zeros that take no room."""
    import torchvision

    with torch.device("meta"):
        network = getattr(torchvision.models, BACKBONES[net].constructor)()
    return {name: torch.zeros(1).expand(value.shape) for name, value in network.state_dict().items()
            if not name.startswith("features.")}


def test_the_targets_features_are_computed_once_and_in_parts(hub, tmp_path, monkeypatch):
    write(tmp_path, BACKBONES["alex"])
    metric = Lpips("alex", CPU, tmp_path)
    a, b, target = images(5), images(5), images(5)
    whole = [metric(a, target), metric(b, target)]
    sizes = []
    monkeypatch.setattr(lpips_metric, "_AT_ONCE", 2)
    metric.network.net.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    found = metric.distances([a, b], target)
    assert sizes == 3 * [2] + 3 * [2] + 3 * [1]
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=0)


@pytest.mark.parametrize("net", BACKBONES)
def test_the_record_has_the_hash_of_all_that_is_used(net, hub, tmp_path):
    write(tmp_path, BACKBONES[net])
    record = Lpips(net, CPU, tmp_path).record
    linear = torch.load(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{net}.pth",
                        weights_only=True, map_location=CPU)
    assert record == {
        "network": {"alex": "alexnet", "vgg": "vgg16"}[net], "version": "0.1",
        "sha256": tensors_sha256(tensors(BACKBONES[net])),
        "linear_sha256": tensors_sha256({name.replace(".model.1", ""): value
                                         for name, value in linear.items()})}


def test_missing_weights_are_named_with_their_place_and_source(hub, tmp_path):
    line = lpips_metric.missing("alex", tmp_path)
    assert "no alexnet-owt-7be5be79.pth or alexnet-features.pth in" in line
    assert str(tmp_path) in line and str(hub) in line and "https://" in line
    (hub / "alexnet-owt-7be5be79.pth").touch()
    assert lpips_metric.missing("alex") == ""


def test_a_damaged_cache_is_found_out(hub):
    write(hub, BACKBONES["alex"], BACKBONES["alex"].name)
    with pytest.raises(UserError, match="damaged"):
        Lpips("alex", CPU)
    with pytest.raises(UserError, match="damaged"):  # and not passed over where nobody asked
        lpips_metric.networks("auto", CPU)


def test_what_a_choice_takes_and_what_is_said_of_the_rest(hub, tmp_path):
    write(tmp_path, BACKBONES["alex"])
    said = []
    found = lpips_metric.networks("auto", CPU, tmp_path, said.append)
    assert list(found) == ["alex"]
    line, = said
    assert line.startswith("LPIPS-vgg left out: no vgg16-397923af.pth or vgg16-features.pth in")
    assert lpips_metric.records(found, "auto") == {"alex": found["alex"].record, "vgg": NO_WEIGHTS}
    assert lpips_metric.records(found, "alex")["vgg"] == NOT_ASKED
    assert lpips_metric.networks("none", CPU, tmp_path, said.append) == {} and len(said) == 1
    with pytest.raises(UserError, match="LPIPS-vgg needs .* the download from .* failed") as caught:
        lpips_metric.networks("vgg", CPU, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("net", BACKBONES)
@pytest.mark.skipif(not REAL, reason=f"{VARIABLE} names no folder")
def test_real_weights_are_those_of_the_published_values(net):
    if BACKBONES[net].look(REAL) is None:
        pytest.skip(f"{REAL} has no weights for LPIPS-{net}")
    assert Lpips(net, CPU, REAL).record["sha256"] == KNOWN[net]


# The example of the metric's own repository; its images are put beside the weights by hand.
@pytest.mark.parametrize("net, values", [("alex", (0.722, 0.138)), ("vgg", (0.569, 0.422))])
@pytest.mark.skipif(not REAL, reason=f"{VARIABLE} names no folder")
def test_published_example_values(net, values):
    files = [Path(REAL) / name for name in ("ex_ref.png", "ex_p0.png", "ex_p1.png")]
    if BACKBONES[net].look(REAL) is None or not all(file.is_file() for file in files):
        pytest.skip(f"{REAL} has not both the weights and the example's images")
    target, *others = (pil_to_tensor(Image.open(file).convert("RGB"))[None] / 127.5 - 1
                       for file in files)
    found = Lpips(net, CPU, REAL).distances(others, target)
    assert [round(float(value), 3) for value in found] == list(values)
