"""Models of the Hugging Face Hub, downloaded whole or in parts."""
