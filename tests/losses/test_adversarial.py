import math

import pytest
import torch

from posemodel.build import build_discriminator
from posemodel.config.sections import ModelConfig
from posemodel.losses.adversarial import (
    balance,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    r1_penalty,
)

REAL, FAKE = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 0.0])


@pytest.mark.parametrize(("form", "generator", "discriminator"), [
    ("lsgan", (4 + 1) / 2, (0.25 + 1) / 2 + 0.5), ("hinge", 0.5, 0.25 + 0.5),
    ("nonsaturating", (math.log1p(math.e) + math.log(2)) / 2,
     (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-2))) / 2
     + (math.log1p(math.exp(-1)) + math.log(2)) / 2),
    ("paper", 1.5, -0.25 - 0.5)])
def test_values_by_hand(form, generator, discriminator):
    assert float(generator_loss(FAKE, form)) == pytest.approx(generator, rel=1e-6)
    assert float(discriminator_loss(REAL, FAKE, form)) == pytest.approx(discriminator, rel=1e-6)


@pytest.mark.parametrize("form", ["lsgan", "hinge", "nonsaturating", "paper"])
def test_the_two_pull_in_opposite_directions(form):
    fake = torch.zeros(3, requires_grad=True)
    generator_loss(fake, form).backward()
    # At 0.5 no form is saturated.
    shifted = torch.full((3,), 0.5, requires_grad=True)
    discriminator_loss(torch.ones(3), shifted, form).backward()
    assert (fake.grad < 0).all() and (shifted.grad > 0).all()


def test_unknown_form():
    with pytest.raises(ValueError, match="expected lsgan"):
        generator_loss(FAKE, "wgan")
    with pytest.raises(ValueError, match="expected lsgan"):
        discriminator_loss(REAL, FAKE, "wgan")


def test_feature_matching_by_hand_teaches_the_generator_only():
    real = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)]
    fake = [torch.tensor([2.0, 0.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)]
    loss = feature_matching_loss(real, fake)
    assert loss == 1.5 + 3
    loss.backward()
    assert fake[0].grad.tolist() == [0.5, -0.5] and fake[1].grad.tolist() == [1.0]
    assert all(one.grad is None for one in real)


def test_r1_of_a_linear_discriminator_by_hand():
    # D(x) = sum of w x: the gradient at every image is w, whatever the image.
    weight = torch.randn(3, 4, 4, requires_grad=True)
    image = torch.randn(5, 3, 4, 4, requires_grad=True)
    penalty = r1_penalty((image * weight).sum((1, 2, 3)).view(5, 1, 1, 1), image)
    torch.testing.assert_close(penalty, weight.square().sum() / 2)
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, weight)


def test_r1_reaches_the_weights_and_falls_when_they_follow_it():
    net = build_discriminator(ModelConfig(discriminator_width=4))
    pose = torch.rand(2, 18, 3)

    def penalty():
        image = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32).requires_grad_()
        return r1_penalty(net(image, pose), image)

    before = penalty()
    weights = [p for name, p in net.named_parameters() if "bias" not in name and p.dim() == 4]
    gradients = torch.autograd.grad(before, weights)
    assert all(g.any() for g in gradients)
    step = 1e-2 * before.detach() / sum(g.square().sum() for g in gradients)
    with torch.no_grad():
        for weight, gradient in zip(weights, gradients, strict=True):
            weight -= step * gradient
    assert penalty() < before


@pytest.mark.parametrize(("form", "real_right", "fake_right"), [
    ("lsgan", 2 / 3, 3 / 4), ("paper", 2 / 3, 3 / 4), ("hinge", 1, 1 / 2),
    ("nonsaturating", 1, 1 / 2)])
def test_balance_by_hand(form, real_right, fake_right):
    real, fake = torch.tensor([0.2, 0.7, 0.9]), torch.tensor([-1.0, -0.5, 0.3, 0.8])
    found = {name: float(value) for name, value in balance(real, fake, form).items()}
    assert found == pytest.approx({"d_real": 0.6, "d_fake": -0.1, "d_real_accuracy": real_right,
                                   "d_fake_accuracy": fake_right})
