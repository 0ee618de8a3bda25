"""Model card, licence and upload of a finished target."""
