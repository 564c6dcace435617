"""Membership, rounds, the ledger of work, settlement. Never an activation or a weight."""
