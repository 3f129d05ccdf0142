"""WHAT ships: bundles and the predictor that serves them. Imports no fastai."""
