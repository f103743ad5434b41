import math

import pytest
import torch

from posemodel.losses.adversarial import discriminator_loss, generator_loss

REAL, FAKE = torch.tensor([0.5, 2.0]), torch.tensor([-1.0, 0.0])


@pytest.mark.parametrize(("form", "generator", "discriminator"), [
    ("lsgan", (4 + 1) / 2, (0.25 + 1) / 2 + 0.5),
    ("hinge", 0.5, 0.25 + 0.5),
    ("nonsaturating", (math.log1p(math.e) + math.log(2)) / 2,
     (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-2))) / 2
     + (math.log1p(math.exp(-1)) + math.log(2)) / 2),
    ("paper", 1.5, -0.25 - 0.5),
])
def test_values_by_hand(form, generator, discriminator):
    assert float(generator_loss(FAKE, form)) == pytest.approx(generator, rel=1e-6)
    assert float(discriminator_loss(REAL, FAKE, form)) == pytest.approx(discriminator, rel=1e-6)


@pytest.mark.parametrize("form", ["lsgan", "hinge", "nonsaturating", "paper"])
def test_the_two_pull_in_opposite_directions(form):
    fake = torch.zeros(3, requires_grad=True)
    generator_loss(fake, form).backward()
    up = -fake.grad.clone()
    fake.grad = None
    # At 0.5 no form is saturated.
    shifted = torch.full((3,), 0.5, requires_grad=True)
    discriminator_loss(torch.ones(3), shifted, form).backward()
    assert (up > 0).all() and (shifted.grad > 0).all()


def test_unknown_form():
    with pytest.raises(ValueError, match="expected lsgan"):
        generator_loss(FAKE, "wgan")
    with pytest.raises(ValueError, match="expected lsgan"):
        discriminator_loss(REAL, FAKE, "wgan")
