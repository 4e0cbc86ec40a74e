"""One file for each system: how its own documentation sets it up, and what it cannot do here."""
