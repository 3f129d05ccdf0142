"""The version, apart from everything else so that set-up reads it without importing torch."""

__version__ = "0.1.0"
