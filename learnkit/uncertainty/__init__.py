"""HOW SURE: scores of unusual images, thresholds, temperatures, prediction sets.

Arrays in, arrays out, float64 throughout; knows neither networks nor files. Imports no fastai.
"""
