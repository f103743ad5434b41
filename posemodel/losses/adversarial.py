"""The adversarial loss, for generator and discriminator (Eq. 6), and what steadies it."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

#: R1 is computed in every so many steps only, and weighs as much more.
R1_EVERY = 16


# By form: what the generator minimises of D's scores of its images; what D minimises of its scores
# of real images, and of generated ones.
_FORMS = {
    "lsgan": (lambda fake: (fake - 1).square(), lambda real: (real - 1).square(), torch.square),
    "nonsaturating": (lambda fake: F.softplus(-fake), lambda real: F.softplus(-real), F.softplus),
    "hinge": (torch.neg, lambda real: F.relu(1 - real), lambda fake: F.relu(1 + fake)),
    # As printed, L_g = E[1 - D(y)] + E[D(I_t)]: the discriminator minimises it, so the generator
    # maximises the part that it has a hand in.
    "paper": (lambda fake: 1 - fake, lambda real: 1 - real, lambda fake: fake),
}


def generator_loss(fake: Tensor, form: str) -> Tensor:
    """What the generator minimises, given D's scores of its images."""
    of_generator, _, _ = _form(form)
    return of_generator(fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor, form: str) -> Tensor:
    """What the discriminator minimises, given its scores of real and generated images."""
    _, of_real, of_fake = _form(form)
    return of_real(real).mean() + of_fake(fake).mean()


def _form(name: str) -> tuple[Callable[[Tensor], Tensor], ...]:
    if name not in _FORMS:
        raise ValueError(
            f"adversarial form is {name!r}, expected lsgan, hinge, nonsaturating or paper")
    return _FORMS[name]


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
    return {"d_real": real.mean(), "d_fake": fake.mean(),
            "d_real_accuracy": (real > middle).float().mean(),
            "d_fake_accuracy": (fake < middle).float().mean()}
