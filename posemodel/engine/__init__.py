"""Training, evaluation, run folders, reports: everything around the networks."""
