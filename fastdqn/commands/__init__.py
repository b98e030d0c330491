"""One file per command beyond train and eval."""
