"""HOW it is reached: a model behind HTTP. Imports no fastai; FastAPI where it is called."""
