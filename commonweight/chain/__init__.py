"""What the project says to an EVM chain: keys, a local chain for development, and typed contracts.

Nothing here is imported by `import commonweight.chain`: web3 takes a second to load, and most commands don't
need it.
"""
