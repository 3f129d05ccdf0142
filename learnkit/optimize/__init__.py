"""Making a predictor faster, and proving what that cost."""
