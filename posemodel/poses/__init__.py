"""Key points: the 18 joints, the formats they come in, checks, maps and drawings of them."""
