"""The verbs of a recipe's `stages`, one file and one class each."""
