"""Training on the very modules that serve: an adapter and a head over a frozen encoder.

`python -m model.training model/training/recipes/sentiment.toml` makes the sentiment adapter that is carried here.
"""
