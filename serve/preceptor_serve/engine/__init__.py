"""The scorer's engine: prefill only, the shared part of a request computed once, many requests in one pass. No Ray."""
