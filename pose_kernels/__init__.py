"""Operators of the pose-transfer network: dense and guided correlation, sampling at a flow.

One convention everywhere: flow is ``[B, 2, h, w]``, channels (x, y), absolute sampling locations in
the source in normalised [-1, 1] at pixel centres (``align_corners=False``). Correlation maps are
``[B, hs*ws, ht, wt]``, the source position ``s = i*ws + j`` first. Needs only torch; ``python -m
pose_kernels`` says what is built and checks it.
"""

from . import _flops
from ._dispatch import Implementation, implementations, use_implementation
from .correlation_4d import correlation_4d
from .flow_sample import flow_sample
from .guided_correlation import guided_correlation
from .guided_correlation_conv2d import guided_correlation_conv2d
from .guided_readout import guided_readout
from .identity_flow import identity_flow
from .mutual_matches import Matches, mutual_matches
from .resize_flow import resize_flow
from .soft_mutual_normalize import soft_mutual_normalize

_flops.register()

__version__ = "0.1.0"

__all__ = ["Implementation", "Matches", "correlation_4d", "flow_sample", "guided_correlation",
           "guided_correlation_conv2d", "guided_readout", "identity_flow", "implementations",
           "mutual_matches", "resize_flow", "soft_mutual_normalize", "use_implementation"]
