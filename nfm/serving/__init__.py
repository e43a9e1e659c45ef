"""A student as others use it: rows of requests in, images that say where they are from out."""
