"""HOW GOOD: arrays in, numbers and tables out. Imports no fastai."""
