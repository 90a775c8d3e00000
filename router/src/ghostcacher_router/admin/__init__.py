"""What the router answers itself: its health, metrics and models, and /gc/* for people who run it."""
