"""The adversarial loss, for generator and discriminator (Eq. 6)."""

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
