"""Unary calls of a gateway to a worker, many in each message of one stream: what grpc.aio takes for a call of its own
(0.1 ms in the gateway, 0.2 ms in the worker) is paid once a message.

    gateway ──[ calls of one turn of its event loop, cancelled ids ]──► worker
            ◄──[ answers that became ready in one turn of its ]────────

A call's semantics are those of an rpc: it has a deadline, its caller may go away, it ends once, and is logged and
counted by the worker as an rpc is. The stream only carries: no call waits for another, large requests go as rpcs of
their own, and large answers in parts with others between them.
"""

# What one message holds, but for what a last call or a list of errors adds.
MESSAGE_BYTES = 256 * 1024
