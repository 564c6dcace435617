"""A test world: links with rate, delay, jitter, loss and cuts, between processes on one machine or between network
namespaces, and seeded schedules of faults. Nothing that runs in earnest imports it.
"""
