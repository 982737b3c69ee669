"""What every service stands on: settings, errors, metrics, logging, lifecycle and the gRPC server."""
