"""`python -m posemodel.reproduce`: the paper's tables, trained and measured again."""
