"""REST: authentication, resources, problems, OpenAPI. The only door to callers."""
