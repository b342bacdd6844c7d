"""What a run is read by: the report page, its plots, the model card, the console tables, the comparison."""
