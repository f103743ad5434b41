import math

import numpy as np
import pytest
import torch

from posemodel import metrics


def test_l1_is_on_the_255_scale():
    black, white = -torch.ones(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    assert metrics.l1_255(black, white).tolist() == [255.0, 255.0]
    half = torch.stack([black[0], white[0]])
    assert metrics.l1_255(black, half).tolist() == [0.0, 255.0]


def test_l1_at_32_does_not_see_finer_detail():
    board = torch.ones(64, 64)
    board[::2, ::2] = board[1::2, 1::2] = -1
    image = board.expand(1, 3, 64, 64)
    assert metrics.l1_255_at_32(image, torch.zeros_like(image)) == pytest.approx(0.0, abs=1e-5)
    assert metrics.l1_255(image, torch.zeros_like(image)) == pytest.approx(127.5)


@pytest.mark.parametrize("size", [(64, 64), (48, 32)])
def test_ssim_is_scikit_images(size):
    skimage = pytest.importorskip("skimage.metrics")
    generator = torch.Generator().manual_seed(0)
    a = 2 * torch.rand(3, 3, *size, generator=generator, dtype=torch.float64) - 1
    b = (a + 0.3 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(-1, 1)
    expected = [skimage.structural_similarity(
        x.numpy(), y.numpy(), channel_axis=0, data_range=2, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False) for x, y in zip(a, b, strict=True)]
    assert np.allclose(metrics.ssim(a, b).numpy(), expected, atol=1e-6)
    assert torch.allclose(metrics.ssim(a, a), torch.ones(3, dtype=torch.float64))


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


def test_roc_auc_by_hand_and_by_brute_force():
    assert metrics.roc_auc(torch.tensor([0.1, 0.9]), torch.tensor([False, True])) == 1.0
    assert metrics.roc_auc(torch.tensor([0.9, 0.1]), torch.tensor([False, True])) == 0.0
    assert metrics.roc_auc(torch.ones(6), torch.tensor([True, False] * 3)) == 0.5
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 9, (200,), generator=generator).float()
    labels = torch.rand(200, generator=generator) < 0.3
    wins = scores[labels][:, None] - scores[~labels][None]
    brute = float(((wins > 0) + 0.5 * (wins == 0)).float().mean())
    assert metrics.roc_auc(scores, labels) == pytest.approx(brute, abs=1e-6)


def test_roc_auc_of_one_kind_is_nan():
    assert math.isnan(metrics.roc_auc(torch.rand(4), torch.ones(4, dtype=torch.bool)))
