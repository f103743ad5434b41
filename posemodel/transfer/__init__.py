"""`python -m posemodel.transfer`: a person in a photograph, in new poses."""
