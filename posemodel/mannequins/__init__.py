"""Generated people whose true flow and visibility are known for every pixel."""
