"""Where Envoy and probes reach us: gRPC and HTTP in, values of the core inside."""

import os

# Read once, when grpc is imported. With its event engine, what arrives is handed to
# threads of its own, which takes a fifth more of the processor; without, the thread
# that waits for it reads it.
GRPC_EXPERIMENTS = "-event_engine_listener"
os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
