"""A gRPC client as others write them. Runs one scenario against an address, and fails with a traceback."""

import sys
import threading

import grpc

address, scenario = sys.argv[1:3]
channel = grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)])
PATIENCE = 15


def refusal(call):
    try:
        call()
    except grpc.RpcError as error:
        return error
    raise AssertionError("the call should have failed")


def unary():
    say = channel.unary_unary("/echo.Echo/Say")
    for message in (b"hello", b"", bytes(range(256)) * 1024):
        metadata = (("x-mine", "kept"), ("x-raw-bin", b"\x00\xff\x01"))
        answer, call = say.with_call(message, metadata=metadata, timeout=PATIENCE)
        assert answer == message, answer[:100]
        assert dict(call.initial_metadata()).get("x-first") == "early", call.initial_metadata()
        trailing = dict(call.trailing_metadata())
        assert (trailing.get("x-last"), trailing.get("x-raw-bin")) == ("kept", b"\x00\xff\x01"), trailing
        assert call.code() is grpc.StatusCode.OK


def streams():
    call = channel.unary_stream("/echo.Echo/Count")(b"1000", timeout=PATIENCE)
    assert list(call) == [str(n).encode() for n in range(1000)]
    assert dict(call.trailing_metadata()).get("x-counted") == "1000"
    parts = [b"x" * 10_000] * 50
    assert channel.stream_unary("/echo.Echo/Collect")(iter(parts), timeout=PATIENCE) == b"".join(parts)

    # Each message is answered before the next is sent.
    answered = threading.Semaphore(1)

    def questions():
        for n in range(20):
            assert answered.acquire(timeout=PATIENCE)
            yield str(n).encode()

    for n, answer in enumerate(channel.stream_stream("/echo.Echo/Chat")(questions(), timeout=PATIENCE)):
        assert answer == b"re: " + str(n).encode(), answer
        answered.release()
    assert n == 19


def errors():
    error = refusal(lambda: channel.unary_unary("/echo.Echo/Fail")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION, error
    assert error.details() == "not now: 50 % caf\u00e9", error.details()
    assert dict(error.trailing_metadata()).get("x-why") == "because", error.trailing_metadata()
    error = refusal(lambda: channel.unary_unary("/echo.Echo/Nothing")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED, error
    call = channel.unary_stream("/echo.Echo/FailLate")(b"", timeout=PATIENCE)
    assert next(call) == b"one"
    error = refusal(lambda: next(call))
    assert (error.code(), error.details()) == (grpc.StatusCode.DATA_LOSS, "half way"), error
    # None of it has harmed the channel.
    assert channel.unary_unary("/echo.Echo/Say")(b"after", timeout=PATIENCE) == b"after"


def deadline():
    error = refusal(lambda: channel.unary_unary("/echo.Echo/Hang")(b"", timeout=0.5))
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED, error
    assert channel.unary_unary("/echo.Echo/WasCancelled")(b"", timeout=PATIENCE) == b"yes"


def many():
    say = channel.unary_unary("/echo.Echo/Say")
    calls = [say.future(str(n).encode(), timeout=PATIENCE) for n in range(500)]
    assert [call.result() for call in calls] == [str(n).encode() for n in range(500)]


def unavailable():
    error = refusal(lambda: channel.unary_unary("/echo.Echo/Say")(b"", timeout=PATIENCE))
    assert error.code() is grpc.StatusCode.UNAVAILABLE, error


def serving():
    channel.unary_unary("/echo.Echo/SetHealth")(b"serving", timeout=PATIENCE)


def not_serving():
    channel.unary_unary("/echo.Echo/SetHealth")(b"not serving", timeout=PATIENCE)


{name: run for name, run in globals().items() if callable(run)}[scenario]()
