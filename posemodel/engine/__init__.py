"""Training: the step, what it minimises, its schedule, the run folder, the report."""
