"""Measuring a test set: each pair, all of them, and what may be concluded."""
