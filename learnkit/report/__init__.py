"""Documents for terminals, notebooks and model cards; knows no model."""
