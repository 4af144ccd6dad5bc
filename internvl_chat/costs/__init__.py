"""What a run costs, told from shapes alone: arithmetic, and what follows from it."""
