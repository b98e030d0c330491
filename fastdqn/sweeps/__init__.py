"""Many runs: one trial at a time, or all of them on Ray."""
