"""One function per way of fine-tuning. A recipe says what is special about it; `lab.train` does the rest."""
