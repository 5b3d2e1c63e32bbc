"""The online side: a bundle behind HTTP. `api` is the edge, `scorer` the work, `app` the Ray Serve deployments."""
