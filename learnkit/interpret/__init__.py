"""One pass over a model, then numbers, then pictures."""
