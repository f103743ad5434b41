"""Pose transfer using a single spatial transformation.

Commands: `python -m posemodel.train`, `python -m posemodel.evaluate`. In Python, the networks are
in `posemodel.model`, the losses in `posemodel.losses`, the data in `posemodel.data`. Importing the
package imports nothing else, so that `--help` answers at once.
"""

__version__ = "0.1.0"
