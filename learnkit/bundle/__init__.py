"""A model as a folder of data: schema, state, probes, card, written and read."""
