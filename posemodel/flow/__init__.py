"""Flows: the face of every estimator, exact affine ones, their visibility, their files."""
