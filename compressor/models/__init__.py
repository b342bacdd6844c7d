"""What a transformer is made of: architecture tables, structures, gates, slicing, checkpoints."""
