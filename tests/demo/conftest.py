"""One untrained model of the smallest size for all tests of the demo."""

import pytest
import torch

from posemodel.build import build_generator
from posemodel.demo.workbench import Workbench
from posemodel.inference.model import PoseTransferModel
from tests.tiny import tiny_config


@pytest.fixture(scope="session")
def workbench():
    """At 32 x 32 pixels, on the CPU."""
    torch.manual_seed(0)
    config = tiny_config()
    generator = build_generator(config.model, config.data.image_size)
    return Workbench(PoseTransferModel(generator, config=config, name="tiny",
                                       metadata={"step": "3"}, device=torch.device("cpu")))
