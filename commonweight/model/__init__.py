"""The model: decoder, stage, data and tokenizer. Knows nothing of the network, the chain or the roles."""
