"""The benchmark runs, and says what it found."""
