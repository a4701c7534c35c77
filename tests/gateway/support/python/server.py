"""A gRPC server as others write them: grpcio, a health service and an echo service. Prints its port, then serves.

Messages are plain bytes, so that nothing has to be generated from .proto files.
"""

import sys
import threading
import time
from concurrent import futures

import grpc

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"

health = SERVING
cancelled = threading.Event()


def say(request, context):
    context.send_initial_metadata((("x-first", "early"),))
    sent = dict(context.invocation_metadata())
    context.set_trailing_metadata((("x-last", sent.get("x-mine", "")), ("x-raw-bin", sent.get("x-raw-bin", b""))))
    return request


def count(request, context):
    for n in range(int(request)):
        yield str(n).encode()
    context.set_trailing_metadata((("x-counted", request.decode()),))


def collect(requests, context):
    return b"".join(requests)


def chat(requests, context):
    for request in requests:
        yield b"re: " + request


def fail(request, context):
    context.set_trailing_metadata((("x-why", "because"),))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now: 50 % caf\u00e9")


def fail_late(request, context):
    yield b"one"
    context.abort(grpc.StatusCode.DATA_LOSS, "half way")


def hang(request, context):
    context.add_callback(cancelled.set)
    while context.is_active():
        time.sleep(0.01)
    return b""


def was_cancelled(request, context):
    return b"yes" if cancelled.wait(10) else b"no"


def set_health(request, context):
    global health
    health = SERVING if request == b"serving" else NOT_SERVING
    return b""


METHODS = {
    "/grpc.health.v1.Health/Check": grpc.unary_unary_rpc_method_handler(lambda request, context: health),
    "/echo.Echo/Say": grpc.unary_unary_rpc_method_handler(say),
    "/echo.Echo/Count": grpc.unary_stream_rpc_method_handler(count),
    "/echo.Echo/Collect": grpc.stream_unary_rpc_method_handler(collect),
    "/echo.Echo/Chat": grpc.stream_stream_rpc_method_handler(chat),
    "/echo.Echo/Fail": grpc.unary_unary_rpc_method_handler(fail),
    "/echo.Echo/FailLate": grpc.unary_stream_rpc_method_handler(fail_late),
    "/echo.Echo/Hang": grpc.unary_unary_rpc_method_handler(hang),
    "/echo.Echo/WasCancelled": grpc.unary_unary_rpc_method_handler(was_cancelled),
    "/echo.Echo/SetHealth": grpc.unary_unary_rpc_method_handler(set_health),
}


class Services(grpc.GenericRpcHandler):
    def service(self, call):
        return METHODS.get(call.method)


server = grpc.server(
    futures.ThreadPoolExecutor(16), handlers=(Services(),), options=[("grpc.max_receive_message_length", -1)]
)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
# The test ends this process by closing its input.
sys.stdin.read()
