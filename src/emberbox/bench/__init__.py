"""Measures Emberbox beside plain alternatives on the same machine, in the same run: `emberbox bench`."""
