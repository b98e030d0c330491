"""What this machine is and has: its cores, its memory, its signals, and whether a run fits."""
