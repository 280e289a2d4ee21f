"""The mathematics: plain functions on tensors, without state and without settings."""
