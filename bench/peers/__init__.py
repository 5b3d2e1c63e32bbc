"""What bench/serve_latency.py sends requests to: one student, one kind of request, and a server for each peer."""
