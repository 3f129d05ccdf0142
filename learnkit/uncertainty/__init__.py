"""Uncertainty: out-of-distribution scores, thresholds, temperatures, prediction sets.

Arrays in, arrays out, float64 throughout, numpy alone; knows neither networks nor files.
"""
