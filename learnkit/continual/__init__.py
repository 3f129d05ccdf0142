"""Continual learning: additive statistics of classes, and the classifier derived from them."""
