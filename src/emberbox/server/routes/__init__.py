"""One router for each family of the API."""
