"""WHAT sees: bodies, heads and the recipe that rebuilds them. Imports no fastai."""
