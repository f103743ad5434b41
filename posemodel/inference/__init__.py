"""A trained model in a program of your own."""

from posemodel.inference.model import PoseTransferModel as PoseTransferModel
