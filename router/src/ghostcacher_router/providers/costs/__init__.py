"""What answers of providers used, and what that costs."""
