"""The workers behind the router: which there are, which can be used, what they serve."""
