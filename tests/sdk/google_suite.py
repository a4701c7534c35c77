"""Google's library: generateContent through the gateway."""

from typing import List

from google import genai
from google.genai import errors, types
from pydantic import BaseModel

from common import (ARGUMENTS, CHARACTERS, DOCUMENT, PARAMETERS, PICTURE, PICTURE_TOLD, RESULTS, SENTENCE, THOUGHT, TOOLS_SAID,
                    case, raises, run, same, told)

TOOLS = [types.Tool(function_declarations=[
    types.FunctionDeclaration(name=name, description="Tells it.", parameters_json_schema=PARAMETERS) for name in RESULTS
])]


class City(BaseModel):
    city: str
    people: int
    tags: List[str]


def config(**more):
    more.setdefault("automatic_function_calling", types.AutomaticFunctionCallingConfig(disable=True))
    return types.GenerateContentConfig(**more)


def ask(client, model, contents="Hi", **more):
    return client.models.generate_content(model=model, contents=contents, config=config(**more))


def stream(client, model, contents="Hi", **more):
    return client.models.generate_content_stream(model=model, contents=contents, config=config(**more))


def calls(answer):
    return [(call.name, call.args) for call in answer.function_calls or []]


@case
def plain(client, provider):
    answer = ask(client, f"{provider}/plain.input-50.output-20.cached-30")
    same((answer.text, answer.candidates[0].finish_reason), (SENTENCE, types.FinishReason.STOP))
    usage = answer.usage_metadata
    same((usage.prompt_token_count, usage.candidates_token_count, usage.cached_content_token_count), (50, 20, 30))


@case
def streamed(client, provider):
    for script in ("plain", "utf8.split-1", "plain.separate"):
        chunks = list(stream(client, f"{provider}/{script}"))
        same("".join(chunk.text or "" for chunk in chunks), CHARACTERS if "utf8" in script else SENTENCE)
        same(chunks[-1].candidates[0].finish_reason, types.FinishReason.STOP)
        usage = chunks[-1].usage_metadata
        same((usage.prompt_token_count, usage.candidates_token_count), (20, 10))


@case
def endings(client, provider):
    same(ask(client, f"{provider}/plain.length").candidates[0].finish_reason, types.FinishReason.MAX_TOKENS)
    same(ask(client, f"{provider}/plain.filtered").candidates[0].finish_reason, types.FinishReason.SAFETY)


@case
def tools(client, provider):
    for pieces in (1, 50):
        model = f"{provider}/tools.pieces-{pieces}"
        answer = ask(client, model, tools=TOOLS)
        same(calls(answer), [(name, ARGUMENTS) for name in RESULTS])
        results = [
            types.Part(function_response=types.FunctionResponse(
                id=call.id, name=call.name, response={"output": RESULTS[call.name]})) for call in answer.function_calls
        ]
        turns = [
            types.Content(role="user", parts=[types.Part(text="Hi")]), answer.candidates[0].content,
            types.Content(role="user", parts=results),
        ]
        same(ask(client, model, turns, tools=TOOLS).text, TOOLS_SAID)
        streamed = [call for chunk in stream(client, model, tools=TOOLS) for call in calls(chunk)]
        same(streamed, [(name, ARGUMENTS) for name in RESULTS])


@case
def tool_choice(client, provider):
    def chosen(mode, only=None):
        calling = types.FunctionCallingConfig(mode=mode, allowed_function_names=only)
        return [name for name, _ in calls(ask(client, f"{provider}/tools", tools=TOOLS,
                                              tool_config=types.ToolConfig(function_calling_config=calling)))]
    same(chosen("ANY", ["time"]), ["time"])
    same(chosen("NONE"), [])
    same(chosen("ANY"), list(RESULTS))


@case
def image(client, provider):
    contents = ["What is it?", types.Part.from_bytes(data=PICTURE, mime_type="image/png")]
    answer = ask(client, f"{provider}/echo", contents, system_instruction="Be brief.", max_output_tokens=64, temperature=0.5)
    echo = told(answer.text, ["text What is it?", PICTURE_TOLD])
    same((echo["max_tokens"], echo["temperature"]), (64, 0.5))


@case
def output_schema(client, provider):
    answer = ask(client, f"{provider}/json", response_mime_type="application/json", response_schema=City)
    same(answer.parsed.model_dump(), DOCUMENT)


@case
def reasoning(client, provider):
    answer = ask(client, f"{provider}/reasoning.thoughts-4")
    same(answer.text, SENTENCE)
    same("".join(part.text for part in answer.candidates[0].content.parts if part.thought), THOUGHT)
    if provider != "anthropic":
        same(answer.usage_metadata.thoughts_token_count, 4)


@case
def failures(client, provider):
    for status, kind in ((400, errors.ClientError), (429, errors.ClientError), (500, errors.ServerError), (503, errors.ServerError)):
        error = raises(kind, lambda: ask(client, f"{provider}/status-{status}.retry-after-0"))
        assert error.status and error.message, error
        raises(kind, lambda: list(stream(client, f"{provider}/status-{status}.retry-after-0")))
    for script in ("error-first", "garbage-first", "empty", "close", "close-first", "reset", "wrong-type.garbage-first"):
        raises(errors.ServerError, lambda: ask(client, f"{provider}/{script}"))
        raises(errors.ServerError, lambda: list(stream(client, f"{provider}/{script}")))
    for script in ("error-midway", "garbage-midway", "close-midway", "reset-midway"):
        pieces = []

        def read():
            for chunk in stream(client, f"{provider}/{script}"):
                pieces.append(chunk.text or "")
        raises(errors.APIError, read)
        assert SENTENCE.startswith("".join(pieces)) and any(pieces), pieces


@case
def refusals(client, provider):
    raises(errors.ClientError, lambda: ask(client, "nobody/has-this"))
    assert any(model.name for model in client.models.list()), "models are listed"


run(lambda base, key: genai.Client(api_key=key, http_options=types.HttpOptions(base_url=base, timeout=20000)))
