"""Data sources: services that fill tables from something outside of the bus. `base` says what a new one needs."""
