"""Clients of a server, in the words of its requests and answers."""
