"""Checking what coordinators propose: public statements, the faults in them, and the challenge on chain."""
