"""The page where unknowns are named: a person's labels, learned at once; mounted beside the app."""
