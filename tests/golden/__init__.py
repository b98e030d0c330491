"""What EnvPool played when it was recorded."""
