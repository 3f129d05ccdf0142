"""Files that are whole or not there; knows no model."""
