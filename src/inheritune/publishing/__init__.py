"""Write the model card of a finished target, check its licence, upload it."""
