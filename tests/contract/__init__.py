"""What raw EnvPool is asked, in processes of its own."""
