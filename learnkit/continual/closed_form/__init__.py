"""Closed-form classifiers over class statistics, and their exact leave-one-out."""
