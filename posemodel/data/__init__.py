"""Data sets in their published layouts, and the source of a run's batches."""
