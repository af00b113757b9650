"""A Python gRPC server that sends back what it gets: what no server in Python can be faster than.

python -m pipeline.server_benchmark.echo PORT
"""

import sys
from concurrent import futures

import grpc


class _Echo(grpc.GenericRpcHandler):
    def service(self, _: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)


if __name__ == "__main__":
    server = grpc.server(futures.ThreadPoolExecutor(96))
    server.add_generic_rpc_handlers((_Echo(),))
    server.add_insecure_port(f"localhost:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()
