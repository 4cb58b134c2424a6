"""What runs inside a machine. Standard library only, Python >= 3.9; imports nothing of Emberbox but itself."""
