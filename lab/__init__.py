"""The library: nouns, training, generation, measuring, statistics, reports. Knows no recipe, probe or model by name."""
