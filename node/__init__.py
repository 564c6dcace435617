"""A provider: a control process and a compute worker that holds one stage."""
