"""What the gateway costs: subjects under one load, behind the same listener.yaml."""
