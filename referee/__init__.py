"""Replays drawn units of work: a child process of the coordinator, which itself never holds a weight."""
