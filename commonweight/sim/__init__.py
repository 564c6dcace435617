"""A swarm of any size in one process: `commonweight sim`. Hosts the same rules as a coordinator does."""
