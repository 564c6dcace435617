"""Nodes and auditors that cheat, each in one way: to test that it doesn't pay. See commonweight/devnet/byzantine.py."""
