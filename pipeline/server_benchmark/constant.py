"""A Python gRPC server that computes nothing: what no server in Python can be faster than.

python -m pipeline.server_benchmark.constant PORT FILE

gives everybody the answer that is in the file.
"""

import sys
from concurrent import futures
from pathlib import Path

import grpc


class _Constant(grpc.GenericRpcHandler):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda *_: self._answer)


if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(2))  # more get in each other's way
    server.add_generic_rpc_handlers((_Constant(Path(sys.argv[2]).read_bytes()),))
    server.add_insecure_port(f"localhost:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()
