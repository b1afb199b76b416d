"""One function per behaviour test. A probe returns samples, scorers, a direction and a chance level."""
