"""What a run is made of: the fields, named starting points, flags, and how it is stored."""
