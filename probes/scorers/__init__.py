"""Scorers: named, versioned functions from a sample and its response to a score."""
