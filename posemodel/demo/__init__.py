"""The page of `python -m posemodel.demo`: drag a skeleton, see what the model makes of it."""
