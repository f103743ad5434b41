"""Data: generated people, photographs in their published layouts, key points."""
