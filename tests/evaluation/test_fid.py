from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from posemodel.evaluation import fid
from posemodel.evaluation.fid import FeatureStatistics, InceptionFeatures, frechet_distance
from posemodel.evaluation.protocols import CFLD, GFLA
from posemodel.runtime.errors import UserError

linalg = pytest.importorskip("scipy.linalg")
fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files of random weights for both networks, scaled so that features depend on the image."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        # The library makes a network with given weights only; these take the random start.
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save({}, folder / "empty.pth")
        network = fidelity.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"],
            feature_extractor_weights_path=str(folder / "empty.pth"))
    other = torchvision.models.inception_v3(weights=None, init_weights=False)
    generator = torch.Generator().manual_seed(0)
    for name, one in (("fid-inception", network), ("imagenet-inception", other)):
        torch.save({key: torch.randn(value.shape, generator=generator)
                    * (2 / value[0].numel()) ** 0.5 if value.ndim == 4 else value
                    for key, value in one.state_dict().items()}, folder / f"{name}.pth")
    return folder


def assert_close_and_telling(got, expected):
    assert got.shape == expected.shape == (2, 2048)
    assert (expected[0] - expected[1]).abs().mean() > 0.01 * expected.abs().mean() > 0
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()


def gaussian_features(count, mean, root):
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, len(mean))) @ root + mean)


def statistics_of(mean, covariance, count=100):
    """Statistics with exactly this mean and covariance."""
    mean = np.asarray(mean, dtype=np.float64)
    return FeatureStatistics().load({
        "count": np.array(count), "sum": count * mean,
        "product": (count - 1) * np.asarray(covariance) + count * np.outer(mean, mean)})


def test_distance_of_gaussians_that_commute_has_a_closed_form():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))
    first, second = np.array([1.0, 4, 9, 2, 5]), np.array([4.0, 1, 1, 2, 3])
    covariances = [rotation @ np.diag(values) @ rotation.T for values in (first, second)]
    mean = np.arange(5.0)
    expected = 5.0 + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    sides = [statistics_of(mean, covariances[0]), statistics_of(mean + 1, covariances[1])]
    assert frechet_distance(*sides) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(sides[0], sides[0]) == pytest.approx(0, abs=1e-6)


def test_distance_is_that_of_scipys_matrix_root():
    random = np.random.default_rng(1)
    roots = random.normal(size=(2, 6, 6))
    a, b = roots[0] @ roots[0].T, roots[1] @ roots[1].T
    expected = np.trace(a + b - 2 * linalg.sqrtm(a @ b).real) + 6 * 0.25
    got = frechet_distance(statistics_of(np.zeros(6), a), statistics_of(np.full(6, 0.5), b))
    assert got == pytest.approx(expected, rel=1e-6)


def test_statistics_are_numpys_and_merge():
    features = gaussian_features(50, np.arange(4.0) * 10, np.eye(4) + 0.3)
    whole, left, right = (FeatureStatistics() for _ in range(3))
    for part in features.split(7):
        whole.update(part)
    left.update(features[:20])
    right.update(features[20:])
    merged = FeatureStatistics().load(left.state())
    merged.merge(right)
    for statistics in (whole, merged):
        assert statistics.count == 50
        assert np.allclose(statistics.mean, features.numpy().mean(0), rtol=1e-12)
        assert np.allclose(statistics.covariance, np.cov(features.numpy(), rowvar=False),
                           rtol=1e-9, atol=1e-9)


def test_one_image_is_no_distribution():
    few = FeatureStatistics()
    few.update(torch.rand(1, 4))
    with pytest.raises(UserError, match="at least 2 images on each side; there are 1 and 1"):
        frechet_distance(few, few)


def test_features_are_torch_fidelitys(weights):
    path = weights / "fid-inception.pth"
    images = torch.randint(0, 256, (2, 3, 40, 24))
    library = fidelity.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    expected, = library(images.to(torch.uint8))
    got = InceptionFeatures("fid-inception", CPU, path)(images.double())
    assert_close_and_telling(got, expected)


def test_imagenet_features_are_cflds(weights):
    path = weights / "imagenet-inception.pth"
    images = torch.randint(0, 256, (2, 3, 40, 24))
    network = torchvision.models.inception_v3(weights=None, init_weights=False).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    layers = [layer for name, layer in network.named_children()
              if name not in ("AuxLogits", "avgpool", "dropout", "fc")]
    x = torch.nn.functional.interpolate(images / 255, size=(299, 299), mode="bilinear")
    scale, shift = torch.tensor([[0.229, 0.224, 0.225], [0.485, 0.456, 0.406]]).view(2, 1, 3, 1, 1)
    with torch.no_grad():
        expected = torch.nn.Sequential(*layers)(x * scale / 0.5 + (shift - 0.5) / 0.5).mean((2, 3))
    got = InceptionFeatures("imagenet-inception", CPU, path)(images.double())
    assert_close_and_telling(got, expected)
    url = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.url
    assert fid.FEATURES["imagenet-inception"].url == url


class FirstColors:
    """Sixteen colours of an image instead of a network."""

    name, digest = "colours", "0"

    def __init__(self):
        self.images = 0

    def __call__(self, images):
        self.images += len(images)
        assert (images == images.round()).all()
        features = torch.zeros(len(images), 2048, dtype=torch.float64)
        features[:, :16] = images.flatten(1)[:, ::images[0].numel() // 16][:, :16]
        return features


def read(path):
    return np.array(Image.open(path))


def test_reference_is_cached_by_content(tmp_path):
    random, paths = np.random.default_rng(0), []
    for index in range(5):
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(random.integers(0, 256, (16 + index, 12, 3), dtype=np.uint8)).save(
            paths[-1])
    protocol, network, cache = GFLA.at((16, 12)), FirstColors(), tmp_path / "cache"
    first = fid.reference_statistics(paths, network, protocol, cache, read)
    assert first.count == 5 and network.images == 5
    again = fid.reference_statistics(paths[::-1], network, protocol, cache, read)
    assert network.images == 5 and np.array_equal(again.covariance, first.covariance)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".npz"]
    fid.reference_statistics(paths[:4], network, protocol, cache, read)         # fewer images
    assert network.images == 9
    fid.reference_statistics(paths, network, replace(protocol, size=(16, 16)), cache, read)
    assert network.images == 14
    Image.fromarray(random.integers(0, 256, (16, 12, 3), dtype=np.uint8)).save(paths[0])
    changed = fid.reference_statistics(paths, network, protocol, cache, read)   # same names
    assert network.images == 19 and not np.array_equal(changed.mean, first.mean)


def test_missing_weights_are_one_line(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("no network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    for protocol in (GFLA, CFLD):
        line = fid.missing(protocol.fid_weights)
        assert str(tmp_path) in line and "https://" in line and "\n" not in line
        with pytest.raises(UserError, match="the download from .* failed"):
            InceptionFeatures(protocol.fid_weights, CPU)


@pytest.mark.parametrize("name", fid.FEATURES)
def test_other_weights_are_refused(name, tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"not weights of {name}") as error:
        InceptionFeatures(name, CPU, tmp_path / "other.pth")
    assert "\n" not in str(error.value)
