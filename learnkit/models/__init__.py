"""WHAT sees: bodies, heads and the recipe that rebuilds them. Imports no fastai."""

import learnkit._torchvision  # noqa: F401  # here, so that every module below may import timm
