"""The protocol as pure functions on frozen records: no clock, socket, chain, database or torch.

Servers, nodes, the settlement contracts' tests and an outsider who recomputes an epoch all use these same
rules.
"""
