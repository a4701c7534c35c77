"""Anthropic's library: Messages through the gateway."""

import json

import anthropic

from common import (ARGUMENTS, CHARACTERS, DOCUMENT, PARAMETERS, PICTURE_BASE64, PICTURE_TOLD, RESULTS, SCHEMA, SENTENCE, THOUGHT,
                    TOOLS_SAID, case, raises, run, same, told)

SAY_HI = [{"role": "user", "content": "Hi"}]
TOOLS = [{"name": name, "description": "Tells it.", "input_schema": PARAMETERS} for name in RESULTS]


def ask(client, model, messages=SAY_HI, **more):
    return client.messages.create(model=model, max_tokens=64, messages=messages, **more)


def texts(message):
    return "".join(block.text for block in message.content if block.type == "text")


def calls(message):
    return [(block.name, block.input) for block in message.content if block.type == "tool_use"]


@case
def plain(client, provider):
    message = ask(client, f"{provider}/plain.input-50.output-20.cached-30")
    same((texts(message), message.stop_reason, message.role), (SENTENCE, "end_turn", "assistant"))
    usage = message.usage
    same((usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens), (20, 30, 20))


@case
def streamed(client, provider):
    for script in ("plain", "utf8.split-1", "plain.separate"):
        with client.messages.stream(model=f"{provider}/{script}", max_tokens=64, messages=SAY_HI) as stream:
            text = "".join(stream.text_stream)
            message = stream.get_final_message()
        same(text, CHARACTERS if "utf8" in script else SENTENCE)
        same((texts(message), message.stop_reason, message.usage.output_tokens), (text, "end_turn", 10))
        same(message.usage.input_tokens, 20)
    events = [event.type for event in ask(client, f"{provider}/plain", stream=True)]
    same((events[0], events[-1], events.count("message_start")), ("message_start", "message_stop", 1))


@case
def endings(client, provider):
    same(ask(client, f"{provider}/plain.length").stop_reason, "max_tokens")
    same(ask(client, f"{provider}/plain.filtered").stop_reason, "refusal")


@case
def tools(client, provider):
    for pieces in (1, 50):
        model = f"{provider}/tools.pieces-{pieces}"
        message = ask(client, model, tools=TOOLS)
        same((calls(message), message.stop_reason), ([(name, ARGUMENTS) for name in RESULTS], "tool_use"))
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": RESULTS[block.name]}
            for block in message.content if block.type == "tool_use"
        ]
        turns = [*SAY_HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        same(texts(ask(client, model, turns, tools=TOOLS)), TOOLS_SAID)
        with client.messages.stream(model=model, max_tokens=64, messages=SAY_HI, tools=TOOLS) as stream:
            message = stream.get_final_message()
        same((calls(message), message.stop_reason), ([(name, ARGUMENTS) for name in RESULTS], "tool_use"))
        same(len({block.id for block in message.content if block.type == "tool_use"}), 2)


@case
def tool_choice(client, provider):
    model = f"{provider}/tools"
    same([name for name, _ in calls(ask(client, model, tools=TOOLS, tool_choice={"type": "tool", "name": "time"}))], ["time"])
    same(calls(ask(client, model, tools=TOOLS, tool_choice={"type": "none"})), [])
    same(len(calls(ask(client, model, tools=TOOLS, tool_choice={"type": "any"}))), 2)
    if provider != "gemini":
        choice = {"type": "auto", "disable_parallel_tool_use": True}
        same(len(calls(ask(client, model, tools=TOOLS, tool_choice=choice))), 1)


@case
def image(client, provider):
    source = {"type": "base64", "media_type": "image/png", "data": PICTURE_BASE64}
    content = [{"type": "text", "text": "What is it?"}, {"type": "image", "source": source}]
    message = ask(client, f"{provider}/echo", [{"role": "user", "content": content}], system="Be brief.", stop_sequences=["END"],
                  extra_body={"temperature": 0.5})
    echo = told(texts(message), ["text What is it?", PICTURE_TOLD])
    same((echo["max_tokens"], echo["temperature"]), (64, 0.5))
    if provider != "responses":
        same(echo["stop"], ["END"])


@case
def output_schema(client, provider):
    output = {"format": {"type": "json_schema", "schema": SCHEMA}}
    same(json.loads(texts(ask(client, f"{provider}/json", output_config=output))), DOCUMENT)


@case
def reasoning(client, provider):
    message = ask(client, f"{provider}/reasoning")
    thoughts = [block for block in message.content if block.type == "thinking"]
    same((texts(message), [block.thinking for block in thoughts]), (SENTENCE, [THOUGHT]))
    with client.messages.stream(model=f"{provider}/reasoning", max_tokens=64, messages=SAY_HI) as stream:
        streamed = stream.get_final_message()
    same([block.thinking for block in streamed.content if block.type == "thinking"], [THOUGHT])


@case
def errors(client, provider):
    for status, kind in ((400, anthropic.BadRequestError), (429, anthropic.RateLimitError), (500, anthropic.InternalServerError),
                         (529, anthropic.InternalServerError)):
        for stream in (False, True):
            error = raises(kind, lambda: ask(client, f"{provider}/status-{status}.retry-after-0", stream=stream))
            same(error.body["type"], "error")
    for script in ("error-first", "garbage-first", "empty", "close", "close-first", "reset", "wrong-type.garbage-first"):
        for stream in (False, True):
            raises(anthropic.InternalServerError, lambda: ask(client, f"{provider}/{script}", stream=stream))
    for script in ("error-midway", "garbage-midway", "close-midway", "reset-midway"):
        pieces = []

        def read():
            with client.messages.stream(model=f"{provider}/{script}", max_tokens=64, messages=SAY_HI) as stream:
                pieces.extend(stream.text_stream)
        raises(anthropic.APIStatusError, read)
        assert SENTENCE.startswith("".join(pieces)) and any(pieces), pieces


@case
def refusals(client, provider):
    raises(anthropic.NotFoundError, lambda: ask(client, "nobody/has-this"))
    stranger = client.with_options(api_key="hgk_of_nobody")
    raises(anthropic.AuthenticationError, lambda: ask(stranger, f"{provider}/plain"))
    assert any(model.id for model in client.models.list()), "models are listed"


run(lambda base, key: anthropic.Anthropic(base_url=base, api_key=key, max_retries=0, timeout=20))
