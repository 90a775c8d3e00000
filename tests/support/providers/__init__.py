"""Servers in the places of hosted providers, and a router before them."""
