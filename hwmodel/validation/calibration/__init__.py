"""Fitting a card's free constants to a measured file, scored on rows that were held out."""
