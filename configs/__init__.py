"""Hydra YAML, the only place where names are chosen and combined. A package, so that wheels carry it."""
