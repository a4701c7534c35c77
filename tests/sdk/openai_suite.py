"""OpenAI's library: chat completions and Responses through the gateway."""

import json
from typing import List

import openai
from pydantic import BaseModel

from common import (ARGUMENTS, CHARACTERS, DOCUMENT, PARAMETERS, PICTURE_BASE64, PICTURE_TOLD, RESULTS, SENTENCE, THOUGHT,
                    TOOLS_SAID, case, raises, run, same, told)

SAY_HI = [{"role": "user", "content": "Hi"}]
IMAGE = f"data:image/png;base64,{PICTURE_BASE64}"
CHAT_TOOLS = [
    {"type": "function", "function": {"name": name, "description": "Tells it.", "parameters": PARAMETERS}} for name in RESULTS
]
TOOLS = [{"type": "function", "name": name, "description": "Tells it.", "parameters": PARAMETERS} for name in RESULTS]


class City(BaseModel):
    city: str
    people: int
    tags: List[str]


def chat(client, model, messages=SAY_HI, **more):
    return client.chat.completions.create(model=model, messages=messages, **more)


@case
def chat_plain(client, provider):
    answer = chat(client, f"{provider}/plain.input-50.output-20")
    same(answer.choices[0].message.content, SENTENCE)
    same(answer.choices[0].finish_reason, "stop")
    same((answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens), (50, 20, 70))
    same(answer.object, "chat.completion")


@case
def chat_streamed(client, provider):
    for script in ("plain", "utf8.split-1", "plain.separate"):
        model = f"{provider}/{script}"
        chunks = list(chat(client, model, stream=True, stream_options={"include_usage": True}))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        same(text, CHARACTERS if "utf8" in script else SENTENCE)
        same(len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}), 1)
        same([chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1], "stop")
        same((chunks[-1].choices, chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens), ([], 20, 10))
        same([chunk.usage for chunk in chunks[:-1] if chunk.usage], [])
        silent = list(chat(client, model, stream=True))
        same([chunk for chunk in silent if chunk.usage or not chunk.choices], [])


@case
def chat_length(client, provider):
    same(chat(client, f"{provider}/plain.length").choices[0].finish_reason, "length")
    same(chat(client, f"{provider}/plain.filtered").choices[0].finish_reason, "content_filter")


@case
def chat_tools(client, provider):
    for pieces in (1, 50):
        model = f"{provider}/tools.pieces-{pieces}"
        answer = chat(client, model, tools=CHAT_TOOLS)
        message = answer.choices[0].message
        same(answer.choices[0].finish_reason, "tool_calls")
        same([(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls],
             [(name, ARGUMENTS) for name in RESULTS])
        results = [
            {"role": "tool", "tool_call_id": call.id, "content": RESULTS[call.function.name]} for call in message.tool_calls
        ]
        answer = chat(client, model, [*SAY_HI, message, *results], tools=CHAT_TOOLS)
        same(answer.choices[0].message.content, TOOLS_SAID)


@case
def chat_tools_streamed(client, provider):
    for pieces in (1, 50):
        with client.chat.completions.stream(
            model=f"{provider}/tools.pieces-{pieces}", messages=SAY_HI, tools=CHAT_TOOLS
        ) as stream:
            for _ in stream:
                pass
            answer = stream.get_final_completion()
        calls = answer.choices[0].message.tool_calls
        same(answer.choices[0].finish_reason, "tool_calls")
        same([(call.function.name, json.loads(call.function.arguments)) for call in calls],
             [(name, ARGUMENTS) for name in RESULTS])
        same(len({call.id for call in calls}), 2)


@case
def chat_tool_choice(client, provider):
    model = f"{provider}/tools"
    only = {"type": "function", "function": {"name": "time"}}
    same([call.function.name for call in chat(client, model, tools=CHAT_TOOLS, tool_choice=only).choices[0].message.tool_calls], ["time"])
    same(chat(client, model, tools=CHAT_TOOLS, tool_choice="none").choices[0].message.tool_calls, None)
    same(len(chat(client, model, tools=CHAT_TOOLS, tool_choice="required").choices[0].message.tool_calls), 2)
    # Gemini has no word for it.
    if provider != "gemini":
        one = chat(client, model, tools=CHAT_TOOLS, parallel_tool_calls=False)
        same(len(one.choices[0].message.tool_calls), 1)


@case
def chat_image(client, provider):
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}]
    answer = chat(client, f"{provider}/echo", messages, max_completion_tokens=64, temperature=0.5)
    echo = told(answer.choices[0].message.content, ["text What is it?", PICTURE_TOLD])
    same((echo["max_tokens"], echo["temperature"]), (64, 0.5))


@case
def chat_json(client, provider):
    answer = client.chat.completions.parse(model=f"{provider}/json", messages=SAY_HI, response_format=City)
    same(answer.choices[0].message.parsed.model_dump(), DOCUMENT)


@case
def chat_reasoning(client, provider):
    # OpenAI's own chat completions tell no thoughts; others do in a field that the library keeps.
    answer = chat(client, f"{provider}/reasoning.thoughts-4")
    message = answer.choices[0].message
    same(message.content, SENTENCE)
    same(getattr(message, "reasoning_content", None), THOUGHT)
    if provider != "anthropic":
        same(answer.usage.completion_tokens_details.reasoning_tokens, 4)


@case
def chat_errors(client, provider):
    for status, kind in ((400, openai.BadRequestError), (429, openai.RateLimitError), (500, openai.InternalServerError),
                         (503, openai.InternalServerError)):
        for stream in (False, True):
            error = raises(kind, lambda: chat(client, f"{provider}/status-{status}.retry-after-0", stream=stream))
            assert error.body["message"] and error.type, error
    for script in ("error-first", "garbage-first", "empty", "close", "close-first", "reset", "wrong-type.garbage-first"):
        for stream in (False, True):
            raises(openai.InternalServerError, lambda: chat(client, f"{provider}/{script}", stream=stream))
    for script in ("error-midway", "garbage-midway", "close-midway", "reset-midway"):
        stream = chat(client, f"{provider}/{script}", stream=True)
        pieces = []

        def read():
            for chunk in stream:
                pieces.append(chunk.choices[0].delta.content or "")
        raises(openai.APIError, read)
        assert SENTENCE.startswith("".join(pieces)) and any(pieces), pieces


@case
def refusals(client, provider):
    error = raises(openai.NotFoundError, lambda: chat(client, "nobody/has-this"))
    same(error.code, "model_not_found")
    stranger = client.with_options(api_key="hgk_of_nobody")
    raises(openai.AuthenticationError, lambda: chat(stranger, f"{provider}/plain"))
    assert any(model.id for model in client.models.list()), "models are listed"


def respond(client, model, given="Hi", **more):
    return client.responses.create(model=model, input=given, **more)


@case
def responses_plain(client, provider):
    answer = respond(client, f"{provider}/plain.input-50.output-20")
    same((answer.output_text, answer.status), (SENTENCE, "completed"))
    same((answer.usage.input_tokens, answer.usage.output_tokens), (50, 20))


@case
def responses_streamed(client, provider):
    for script in ("plain", "utf8.split-1"):
        with client.responses.stream(model=f"{provider}/{script}", input="Hi") as stream:
            pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
            answer = stream.get_final_response()
        same("".join(pieces), CHARACTERS if "utf8" in script else SENTENCE)
        same(answer.output_text, "".join(pieces))
        same((answer.usage.input_tokens, answer.usage.output_tokens), (20, 10))
    events = list(respond(client, f"{provider}/plain", stream=True))
    same([event.sequence_number for event in events], list(range(len(events))))
    same((events[0].type, events[-1].type), ("response.created", "response.completed"))


@case
def responses_tools(client, provider):
    model = f"{provider}/tools"
    given = [{"role": "user", "content": "Hi"}]
    answer = respond(client, model, given, tools=TOOLS)
    calls = [item for item in answer.output if item.type == "function_call"]
    same([(call.name, json.loads(call.arguments)) for call in calls], [(name, ARGUMENTS) for name in RESULTS])
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": RESULTS[call.name]} for call in calls]
    again = [*given, *[item.model_dump(exclude_none=True) for item in answer.output], *results]
    same(respond(client, model, again, tools=TOOLS).output_text, TOOLS_SAID)
    with client.responses.stream(model=model, input=given, tools=TOOLS) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_response()
    calls = [item for item in streamed.output if item.type == "function_call"]
    same([(call.name, json.loads(call.arguments)) for call in calls], [(name, ARGUMENTS) for name in RESULTS])


@case
def responses_image(client, provider):
    parts = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": IMAGE, "detail": "auto"}]
    answer = respond(client, f"{provider}/echo", [{"role": "user", "content": parts}], instructions="Be brief.",
                     max_output_tokens=64)
    same(told(answer.output_text, ["text What is it?", PICTURE_TOLD])["max_tokens"], 64)


@case
def responses_json(client, provider):
    answer = client.responses.parse(model=f"{provider}/json", input="Hi", text_format=City)
    same(answer.output_parsed.model_dump(), DOCUMENT)


@case
def responses_reasoning(client, provider):
    answer = respond(client, f"{provider}/reasoning", include=["reasoning.encrypted_content"], store=False)
    thoughts = [item for item in answer.output if item.type == "reasoning"]
    same((answer.output_text, len(thoughts)), (SENTENCE, 1))
    same("".join(part.text for part in [*thoughts[0].summary, *(thoughts[0].content or [])]), THOUGHT)


@case
def responses_errors(client, provider):
    for status, kind in ((400, openai.BadRequestError), (429, openai.RateLimitError), (500, openai.InternalServerError)):
        raises(kind, lambda: respond(client, f"{provider}/status-{status}.retry-after-0"))
        raises(kind, lambda: list(respond(client, f"{provider}/status-{status}.retry-after-0", stream=True)))
    for script in ("error-midway", "close-midway"):
        def read():
            for event in respond(client, f"{provider}/{script}", stream=True):
                if event.type in ("response.failed", "error"):
                    raise openai.APIError("the event says so", request=None, body=None)
                assert event.type != "response.completed", "a broken stream is not complete"
        raises(openai.APIError, read)


run(lambda base, key: openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0, timeout=20))
