"""Where Envoy and probes reach us: gRPC and HTTP in, values of the core inside."""
