"""Commonweight: train one model over many machines, own it by the work that was verified."""

__version__ = "0.1.0"
