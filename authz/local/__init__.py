"""The embedded stack behind `authz up`: a development tool, never a deployment."""
