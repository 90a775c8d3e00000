"""What is known when a request is placed: prefix matches, queues, sessions, and the forecast that is made of them."""
