"""The gateway: the one door to both halves, REST and gRPC outside, gRPC inside.

Reading order: `operations` (the three functions behind every route), `methods`, `router`, `worker_client`; then what
stands in front of them, `rest/` and `grpc_api`; `server` starts it all. No tensor and no tokenizer lives here: bytes
in, bytes out.
"""
