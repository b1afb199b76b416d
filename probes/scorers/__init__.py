"""Functions from a sample and its response to a score. Tested on strings, without a model."""
