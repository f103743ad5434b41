
import numpy as np
import pytest
import torch

from posemodel.evaluation import metrics


def test_l1_is_on_the_255_scale():
    black, white = -torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    l1 = metrics.IMAGE_METRICS["l1"]
    assert l1(black, white).tolist() == [255.0, 255.0]
    half = torch.stack([black[0], white[0]])
    assert l1(black, half).tolist() == [0.0, 255.0]


def test_l1_at_32_does_not_see_finer_detail():
    board = torch.ones(64, 64)
    board[::2, ::2] = board[1::2, 1::2] = -1
    image = board.expand(1, 3, 64, 64)
    grey = torch.zeros_like(image)
    assert metrics.IMAGE_METRICS["l1_32"](image, grey) == pytest.approx(0.0, abs=1e-5)
    assert metrics.IMAGE_METRICS["l1"](image, grey) == pytest.approx(127.5)


def noisy_pairs(channels, size, dtype=torch.float64):
    """Smooth images, flat white in a part, and the same with noise; on 0..255."""
    a = torch.nn.functional.interpolate(
        torch.rand(3, channels, 6, 5, dtype=torch.float64), size=size, mode="bicubic")
    a = (a * 255).clamp(0, 255)
    a[..., :size[1] // 4] = 255
    strength = torch.tensor([5.0, 20.0, 60.0], dtype=torch.float64).view(3, 1, 1, 1)
    noise = strength * torch.randn(a.shape, dtype=torch.float64)
    return a.to(dtype), (a + noise).clamp(0, 255).to(dtype)


@pytest.mark.parametrize("size", [(64, 64), (72, 56)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("variant", [
    {}, {"sigma": 1.2}, {"sigma": 2.5}, {"sample_covariance": True}, {"uniform": 7},
    {"uniform": 7, "sample_covariance": True}, {"uniform": 51, "sample_covariance": True}])
def test_ssim_is_scikit_images(size, channels, variant):
    skimage = pytest.importorskip("skimage.metrics")
    a, b = noisy_pairs(channels, size)
    options = {"use_sample_covariance": variant.get("sample_covariance", False)}
    if "uniform" in variant:
        options["win_size"] = variant["uniform"]
    else:
        options |= {"gaussian_weights": True, "sigma": variant.get("sigma", 1.5)}
    for data_range in (255.0, 100.0, b.flatten(1).amax(1) - b.flatten(1).amin(1)):
        ranges = torch.as_tensor(data_range).expand(3).tolist()
        expected = [skimage.structural_similarity(
            x.numpy(), y.numpy(), channel_axis=0, data_range=one, **options)
            for x, y, one in zip(a, b, ranges, strict=True)]
        got = metrics.structural_similarity(a, b, data_range=data_range, **variant)
        assert np.abs(got.numpy() - expected).max() < 1e-9
    assert len(set(np.round(expected, 2))) == 3  # the pairs differ, so the order of a batch shows


def test_ssim_of_float32_images_keeps_float64_accuracy():
    skimage = pytest.importorskip("skimage.metrics")
    a, b = (image.float() / 127.5 - 1 for image in noisy_pairs(3, (64, 48)))
    # As everybody measures it, black is 0.
    expected = [skimage.structural_similarity(
        *((image.double().numpy() + 1) * 127.5 for image in (x, y)), channel_axis=0, data_range=255,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for x, y in zip(a, b, strict=True)]
    assert np.abs(metrics.ssim(a, b).numpy() - expected).max() < 1e-9
    assert torch.allclose(metrics.ssim(a, a), torch.ones(3, dtype=torch.float64))


def test_ssim_with_reflected_border_is_that_of_the_continued_image():
    a, b = noisy_pairs(3, (40, 32))
    continued = [torch.nn.functional.pad(image, (5,) * 4, mode="reflect") for image in (a, b)]
    assert torch.allclose(metrics.structural_similarity(a, b, data_range=255.0, border="reflect"),
                          metrics.structural_similarity(*continued, data_range=255.0), atol=1e-12)


def test_ssim_refuses_a_window_larger_than_the_image():
    with pytest.raises(ValueError, match="51 pixels does not fit into images of 64 x 48"):
        metrics.structural_similarity(*noisy_pairs(1, (64, 48)), data_range=255.0, uniform=51)


def test_psnr_is_scikit_images():
    skimage = pytest.importorskip("skimage.metrics")
    a, b = noisy_pairs(3, (40, 32))
    expected = [skimage.peak_signal_noise_ratio(x.numpy(), y.numpy(), data_range=255)
                for x, y in zip(a, b, strict=True)]
    assert np.allclose(metrics.psnr(a, b, data_range=255.0).numpy(), expected, rtol=1e-12)
    assert metrics.psnr(a, a, data_range=255.0).isinf().all()


def test_end_point_error_is_in_pixels_of_both_axes():
    truth = torch.zeros(1, 2, 16, 8)
    flow = truth.clone()
    flow[:, 0] = 2 * 3 / 8      # three columns
    flow[:, 1] = 2 * 4 / 16     # four rows
    assert torch.allclose(metrics.end_point_error(flow, truth), torch.full((1, 16, 8), 5.0))


def test_masked_mean_and_its_empty_mask():
    values = torch.arange(8.0).view(2, 2, 2)
    mask = torch.zeros(2, 2, 2, dtype=torch.bool)
    mask[0, 0] = True
    assert metrics.masked_mean(values, mask)[0] == 0.5
    assert metrics.masked_mean(values, mask)[1].isnan()
