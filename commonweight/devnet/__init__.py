"""Everything on one machine, as processes."""
