"""What travels with an artifact for those who serve it; `client` imports nothing of this package."""
