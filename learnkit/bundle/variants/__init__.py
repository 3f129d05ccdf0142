"""Converted networks in a bundle, beside the float32 weights."""
