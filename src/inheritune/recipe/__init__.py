"""Define every recipe key; read, check and list recipes."""
