"""A file or folder per published pruning method; `base` holds the contract and the registry."""
