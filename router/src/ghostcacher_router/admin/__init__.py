"""What the router answers itself: its health, metrics and models, and the admin API /gc/* for people who run it."""
