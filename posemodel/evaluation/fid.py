"""Fréchet Inception distance of refined images, by torch-fidelity.

A FID depends on the network, on how images reach its input, on the reference images and on how many
there are of both. All of it is in the protocol's record.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from posemodel.evaluation.accumulators import Group, Sum
from posemodel.evaluation.protocols import Protocol, prepare
from posemodel.runtime.errors import UserError
from posemodel.runtime.files import sha256
from posemodel.runtime.weights import PublishedWeights, read_weights

FEATURES = {
    # Converted from the TensorFlow network of the original FID.
    "fid-inception": PublishedWeights(
        what="FID", url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
                        "weights-inception-2015-12-05-6726825d.pth"),
    # torchvision's, as CFLD uses it: its FID compares with CFLD's own numbers alone.
    "imagenet-inception": PublishedWeights(
        what="FID", url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"),
}
_NO_PACKAGE = "the package torch-fidelity is not installed (pip install -e '.[eval]')"
_AT_ONCE = 32


class InceptionFeatures:
    """The 2048 features of an Inception network before its classifier."""

    def __init__(self, name: str, device: torch.device, weights: str | Path | None = None, *,
                 folder: str | Path = ""):
        """
        Args:
            name: a key of `FEATURES`.
            weights: file with weights of that network, of any value; None takes the published
                ones.
            folder: of `--weights`, where published ones may lie, see `PublishedWeights`.

        Raises: `UserError`, one line, when neither package nor weights can be had.
        """
        self.name, self.device = name, device
        path = FEATURES[name].find(folder) if weights is None else Path(weights)
        # torch-fidelity reads the file again, by itself and with code allowed: this read shows that
        # there is none in it.
        state = read_weights(path)
        self.digest = sha256(path)
        """SHA-256 of the weights"""
        try:
            self._network = _fid_inception(path) if name == "fid-inception" \
                else _imagenet_inception(state)
        except RuntimeError as error:
            raise UserError(f"{path}: not weights of {name} "
                            f"({str(error).splitlines()[0]})") from error
        self._network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` on 0..255, whole numbers -> `[B, 2048]`."""
        images = images.to(self.device)
        if self.name == "fid-inception":
            features, = self._network(images.to(torch.uint8))
            return features
        images = F.interpolate(images.float() / 255, size=(299, 299), mode="bilinear")
        return self._network(images)


class FeatureStatistics(Group):
    """Mean and covariance of features, of any number of images in constant memory."""

    def __init__(self):
        super().__init__(lambda name: Sum())

    def update(self, features: Tensor) -> None:
        """Add `[B, size]`."""
        features = features.double()
        self["count"].update(len(features))
        self["sum"].update(features.sum(0).cpu().numpy())
        self["product"].update((features.T @ features).cpu().numpy())

    @property
    def count(self) -> int:
        """How many images there were."""
        return int(self["count"].total) if self.parts else 0

    @property
    def mean(self) -> np.ndarray:
        """`[size]`"""
        return self["sum"].total / self.count

    @property
    def covariance(self) -> np.ndarray:
        """`[size, size]`, divided by n - 1"""
        product, mean = self["product"].total, self.mean
        return (product - self.count * np.outer(mean, mean)) / (self.count - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the FID. Raises: `UserError` for fewer than two
    images, or without torch-fidelity."""
    try:
        from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
    except ImportError as error:
        raise UserError(f"FID: {_NO_PACKAGE}") from error
    if min(first.count, second.count) < 2:
        raise UserError(f"FID takes at least 2 images on each side; there are {first.count} and "
                        f"{second.count}")
    sides = ({"mu": side.mean, "sigma": side.covariance} for side in (first, second))
    return fid_statistics_to_metric(*sides, verbose=False)[KEY_METRIC_FID]


def reference_statistics(paths: Sequence[Path], network: InceptionFeatures, protocol: Protocol,
                         cache: Path, read: Callable[[Path], np.ndarray]) -> FeatureStatistics:
    """Statistics of the reference images, from the cache where they are there.

    The cached file is named by a hash of everything that it depends on: the content of every image,
    the weights, and what the protocol does to an image. So it is never taken for another set.

    Args:
        cache: folder for the results, made if it does not exist.
        read: a file -> `[H, W, 3]` uint8.
    """
    path = cache / f"fid-{_reference_digest(paths, network, protocol)[:20]}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as file:
            cached = FeatureStatistics().load(dict(file))
        if cached.count == len(paths):
            return cached
    statistics = FeatureStatistics()
    for start in range(0, len(paths), _AT_ONCE):
        images = [torch.from_numpy(read(file)).permute(2, 0, 1)[None] / 127.5 - 1
                  for file in paths[start:start + _AT_ONCE]]
        statistics.update(network(torch.cat(
            [prepare(image, protocol, protocol.target_codec) for image in images])))
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez(file, **statistics.state())
    os.replace(temporary, path)
    return statistics


def missing(name: str, folder: str | Path = "") -> str:
    """Why FID by this network cannot be had without a download, and where its weights belong; empty
    if it can. `folder` is that of `--weights`."""
    if importlib.util.find_spec("torch_fidelity") is None:
        return _NO_PACKAGE
    return FEATURES[name].missing(folder)


def _reference_digest(paths: Sequence[Path], network: InceptionFeatures, protocol: Protocol) -> str:
    digest = hashlib.sha256()
    seen = [protocol.size, protocol.fit, protocol.resize_filter, protocol.pad,
            asdict(protocol.target_codec)]
    digest.update(json.dumps([network.name, network.digest, seen]).encode())
    # The order of the files does not matter, so it is not part of the name.
    for content in sorted(sha256(path) for path in paths):
        digest.update(content.encode())
    return digest.hexdigest()


def _fid_inception(path: Path) -> torch.nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError(f"FID: {_NO_PACKAGE}") from error
    return FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))


def _imagenet_inception(state: dict[str, Tensor]) -> torch.nn.Module:
    from torchvision.models import inception_v3

    # CFLD applies the network's own renormalisation to images in [0, 1] as they are.
    network = inception_v3(weights=None, init_weights=False, transform_input=True)
    network.load_state_dict(state)
    network.fc = torch.nn.Identity()
    return network
