"""The adversarial loss, for generator and discriminator (Eq. 6), and what steadies it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_loss(fake: Tensor, form: str) -> Tensor:
    """What the generator minimises, given D's scores of its images."""
    if form == "lsgan":
        return (fake - 1).square().mean()
    if form == "nonsaturating":
        return F.softplus(-fake).mean()
    if form == "hinge":
        return -fake.mean()
    if form == "paper":
        # As printed, L_g = E[1 - D(y)] + E[D(I_t)]: the discriminator minimises it, so the
        # generator maximises the part that it has a hand in.
        return (1 - fake).mean()
    raise ValueError(f"adversarial form is {form!r}, expected lsgan, hinge, nonsaturating or paper")


def discriminator_loss(real: Tensor, fake: Tensor, form: str) -> Tensor:
    """What the discriminator minimises, given its scores of real and generated images."""
    if form == "lsgan":
        return (real - 1).square().mean() + fake.square().mean()
    if form == "nonsaturating":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if form == "hinge":
        return F.relu(1 - real).mean() + F.relu(1 + fake).mean()
    if form == "paper":
        return (1 - real).mean() + fake.mean()
    raise ValueError(f"adversarial form is {form!r}, expected lsgan, hinge, nonsaturating or paper")


def feature_matching_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """l1 between D's features of real and generated images, summed over its layers.

    A target that stays where it is, unlike the scores: the generator is asked for images whose
    statistics D cannot tell apart (Salimans et al. 2016; per pixel, as pix2pixHD and FOMM have it).
    No gradient goes to `real`.
    """
    return torch.stack([(b - a.detach()).abs().mean(dtype=torch.float32)
                        for a, b in zip(real, fake, strict=True)]).sum()


def r1_penalty(scores: Tensor, image: Tensor) -> Tensor:
    """R1, half the squared gradient of D's scores at real images (Mescheder et al. 2018).

    Args:
        scores: D's of `image`, `[B, 1, h, w]`; a sample's score is the sum over its patches.
        image: `[B, 3, H, W]`, a leaf that requires a gradient.

    Returns: scalar, mean over the batch; its own gradient goes to the weights of D.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), image, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3)).mean() / 2


def balance(real: Tensor, fake: Tensor, form: str) -> dict[str, Tensor]:
    """Who is winning: D's mean scores of real and generated images, and the share of patches that
    it judges right. Both shares near 1: the generator has lost; near 0.5: D cannot tell.

    Right means on the right side of where the form's two targets meet: 0.5 for "lsgan" and "paper",
    0 for "hinge" and "nonsaturating".
    """
    middle = 0.5 if form in ("lsgan", "paper") else 0.0
    real, fake = real.detach(), fake.detach()
    return {
        "d_real": real.mean(),
        "d_fake": fake.mean(),
        "d_real_accuracy": (real > middle).float().mean(),
        "d_fake_accuracy": (fake < middle).float().mean(),
    }
