"""What the verbs besides `run` do and show: one file a verb, each returning what the console prints."""
