"""Finding each other by libp2p: announcements, discovery, and ways through a NAT. Tensors and control go over gRPC."""
