"""The homes of ImageLearner's verbs, and what `cnn_learner` puts together. They know fastai."""
