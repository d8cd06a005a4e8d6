"""The long experiments whose results are committed under data/."""
