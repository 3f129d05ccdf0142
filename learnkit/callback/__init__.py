"""WHEN during a fit: callbacks that decide when something runs; what runs lives elsewhere."""
