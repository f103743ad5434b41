"""Re-identification, the paper's Appendix C: a training set multiplied by the flow, and its worth.

Nothing here is needed to train or to use the method itself.
"""
