"""WHAT is seen: datasets, checks, and the one recipe from file to tensor. Imports no fastai."""
