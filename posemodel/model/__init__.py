"""The networks, one file per block of the paper's figure. They know nothing of training."""
