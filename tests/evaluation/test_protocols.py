import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from posemodel.evaluation import protocols
from posemodel.evaluation.protocols import CFLD, GFLA, MARKET, PAPER, PATN, PROTOCOLS, Codec, Ssim

skimage = pytest.importorskip("skimage.metrics")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pair():
    """Two images of the same scene, `[2, 3, 64, 64]` in [-1, 1]."""
    smooth = torch.nn.functional.interpolate(torch.rand(2, 3, 9, 9), size=(64, 64), mode="bicubic")
    target = (2 * smooth - 1).clamp(-1, 1)
    return (target + 0.2 * torch.randn(target.shape)).clamp(-1, 1), target


def stored_jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return np.array(Image.open(buffer))


def bytes_of(image, rounding):
    """`[H, W, 3]` uint8 of `[3, H, W]` in [-1, 1]."""
    values = ((image + 1) / 2 * 255).permute(1, 2, 0).numpy()
    return (values if rounding == "truncate" else values.round()).astype(np.uint8)


def measured(protocol, image, target, masks=None, **networks):
    """The metrics of two images as a model shows them."""
    found, = protocols.compare(
        protocol, [protocols.prepare(image, protocol, protocol.result_codec)],
        protocols.prepare(target, protocol, protocol.target_codec), masks=masks, **networks)
    return found


def gaussian_ssim(result, target, data_range=None):
    """Of the range that the result happens to have, where no other is given."""
    return skimage.structural_similarity(
        target, result, channel_axis=-1, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, data_range=data_range or result.max() - result.min())


def test_paper_measures_the_images_as_they_are(pair):
    values = measured(PAPER.at((64, 64)), *pair)
    assert list(values) == ["ssim", "l1", "l1_32"]
    for index, (image, target) in enumerate(zip(*pair, strict=True)):
        image, target = ((one + 1).permute(1, 2, 0).double().numpy() * 127.5
                         for one in (image, target))
        assert values["l1"][index] == pytest.approx(np.abs(image - target).mean(), rel=1e-5)
        low = [one.reshape(32, 2, 32, 2, 3).mean((1, 3)) for one in (image, target)]
        assert values["l1_32"][index] == pytest.approx(np.abs(low[0] - low[1]).mean(), rel=1e-5)
        assert values["ssim"][index] == pytest.approx(gaussian_ssim(image, target, 255), abs=1e-6)


def test_patn_stores_both_as_jpeg_and_adds_white_borders(pair):
    # 64 x 64 with borders of 10, as PATN's 256 x 256 with borders of 40.
    protocol = replace(PATN, size=(64, 44), pad=10)
    values = measured(protocol, *pair)
    assert list(values) == ["ssim"]
    for index, images in enumerate(zip(*pair, strict=True)):
        result, target = (np.pad(stored_jpeg(bytes_of(one[..., 10:54], "truncate")),
                                 ((0, 0), (10, 10), (0, 0)), constant_values=255) for one in images)
        assert values["ssim"][index] == pytest.approx(gaussian_ssim(result, target), abs=1e-6)
    bare = measured(replace(protocol, pad=0), *pair)
    assert (values["ssim"] > bare["ssim"]).all()  # the trap: borders raise it


def test_gfla_and_cfld_are_what_their_scripts_compute(pair):
    for protocol in (GFLA, CFLD):
        values = measured(protocol.at((64, 64)), *pair)
        for index, (image, target) in enumerate(zip(*pair, strict=True)):
            result = bytes_of(image, "truncate")
            if protocol is GFLA:
                result = stored_jpeg(result)
            target = bytes_of(target, "round")
            result, target = result.astype(np.float64), target.astype(np.float64)
            expected = {
                "ssim": skimage.structural_similarity(target / 255, result / 255, channel_axis=-1,
                                                      data_range=1, win_size=51),
                "ssim_256": gaussian_ssim(result, target),
                "psnr": skimage.peak_signal_noise_ratio(target / 255, result / 255, data_range=1)}
            if protocol is GFLA:
                expected["l1"] = np.abs(target - result).mean() / 255
                expected["mae"] = np.abs(target - result).sum() / (target + result).sum()
            assert values.keys() == expected.keys()
            for name in expected:
                assert values[name][index] == pytest.approx(expected[name], abs=1e-6), name


def test_market_masks_both_images(pair):
    pair = [image[..., :32] for image in pair]
    masks = torch.rand(2, 1, 64, 32) < 0.5
    protocol = MARKET.at((64, 32))
    values = measured(protocol, *pair, masks)
    assert list(values) == ["ssim", "mask_ssim", "l1"]
    for index, images in enumerate(zip(*pair, strict=True)):
        result, target = (stored_jpeg(bytes_of(one, "truncate")) for one in images)
        assert values["l1"][index] == pytest.approx(
            np.abs(result.astype(float) - target).mean() / 127.5, rel=1e-6)
        mask = masks[index, 0].numpy()[..., None]
        expected = gaussian_ssim(result * mask, target * mask)
        assert values["mask_ssim"][index] == pytest.approx(expected, abs=1e-6)
    assert "mask_ssim" not in measured(protocol, *pair)
    with pytest.raises(ValueError, match="masks have"):
        measured(protocol, *pair, masks[..., :16])


def test_the_spread_of_five_protocols_for_one_pair():
    """What published tools call SSIM, for one pair that was made to score like the measured one:
    a smooth picture of 256 x 176 against itself with noise."""
    target = torch.nn.functional.interpolate(
        torch.rand(1, 3, 24, 16), size=(256, 176), mode="bicubic").clamp(0, 1) * 255
    result = (target + 15 * torch.randn(target.shape)).clamp(0, 255)
    published = {
        Ssim(width=1.2, data_range="result"): 0.637,                        # PIDM's ssim_256
        Ssim(border="reflect"): 0.7008,                                     # torchmetrics
        Ssim(data_range="result"): 0.7088,                                  # PATN, GFLA, CFLD
        Ssim(window="uniform", width=7, sample_covariance=True): 0.781,     # scikit-image
        Ssim(window="uniform", width=51, sample_covariance=True): 0.950,    # GFLA, PIDM, CFLD
    }
    values = [float(ssim(result, target)) for ssim in published]
    assert values == sorted(values) and values == pytest.approx(list(published.values()), abs=0.03)
    # As the page has it.
    low, *_, high = (f"{value:.2f}".lstrip("0") for value in published.values())
    page = (ROOT / "docs/evaluating.md").read_text()
    assert f"scores {low} to {high} under five published" in page


def test_a_batch_is_measured_like_its_pairs(pair):
    for protocol in PROTOCOLS.values():
        protocol = protocol.at((64, 64))
        batch = measured(protocol, *pair)
        for index in range(2):
            single = measured(protocol, *(image[index:index + 1] for image in pair))
            for name, value in single.items():
                assert value.shape == (1,)
                assert value[0] == pytest.approx(float(batch[name][index]), rel=1e-9), name


def test_lpips_sees_what_the_protocol_stores(pair):
    seen = []

    class Network:
        def distances(self, results, target):
            seen.append((results, target))
            return [torch.zeros(len(target)) for _ in results]

    protocol, networks = PAPER.at((64, 64)), {"alex": Network()}
    assert "lpips_alex" in measured(protocol, *pair, lpips=networks)
    assert torch.allclose(seen[0][0][0], pair[0], atol=1e-6)
    assert torch.allclose(seen[0][1], pair[1], atol=1e-6)
    assert "lpips_vgg" not in measured(protocol, *pair, lpips=networks)
    measured(CFLD.at((64, 64)), *pair, lpips=networks)
    levels = (seen[-1][0][0].double() + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-4


def test_images_of_another_size_are_fitted():
    column = torch.linspace(-1, 1, 100).expand(1, 3, 100, 100)
    cropped = protocols.prepare(column, replace(PAPER, size=(100, 60), fit="crop"), Codec())
    assert torch.allclose(cropped, ((column[..., 20:80] + 1) * 127.5).double(), atol=1e-4)
    stretched = protocols.prepare(column, PAPER.at((50, 60)), Codec())
    assert stretched.shape[-2:] == (50, 60)
    assert stretched[0, 0, 0, 0] < 5 and stretched[0, 0, 0, -1] > 250
    with pytest.raises(ValueError, match="too narrow"):
        protocols.prepare(column, replace(PAPER, size=(100, 120), fit="crop"), Codec())


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=list(PROTOCOLS))
def test_records_are_json_and_tell_protocols_apart(protocol):
    record = protocol.record(pairs=8570, commit="abc")
    assert json.loads(json.dumps(record, allow_nan=False))["pairs"] == 8570
    others = [other for other in PROTOCOLS.values() if other is not protocol]
    same = {key for key in record if key != "name"}
    assert all(any(record[key] != other.record(pairs=8570, commit="abc")[key] for key in same)
               for other in others)


def test_mistakes_in_a_protocol_are_refused():
    with pytest.raises(ValueError, match="FID is for refined images only"):
        replace(PAPER, fid_weights="fid-inception")
    with pytest.raises(ValueError, match="expected warped or refined"):
        replace(PAPER, image="source")
    with pytest.raises(ValueError, match="quality belongs to jpeg"):
        Codec(kind="png", quality=75)
