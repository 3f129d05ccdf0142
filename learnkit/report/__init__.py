"""Reports: one document model for terminals, notebooks, pages and model cards; knows no model."""
