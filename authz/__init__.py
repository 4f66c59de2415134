"""An Envoy external-authorization service for Ollama."""
