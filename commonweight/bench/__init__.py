"""The measurements: `commonweight bench`."""
