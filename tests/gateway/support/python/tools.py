"""Calls tools with the official MCP client. Usage: tools.py URL"""

import asyncio
import sys

from mcp import Client


async def main(url):
    heard = []

    async def progress(done, total, message):
        heard.append(done)

    async with Client(url) as client:
        assert client.protocol_version == "2025-11-25", client.protocol_version
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {"get_time", "test_simple_text"} <= set(tools), set(tools)
        assert tools["get_time"].input_schema["required"] == ["zone"], tools["get_time"]
        assert tools["get_time"].annotations.read_only_hint is True, tools["get_time"]
        got = await client.call_tool("get_time", {"zone": "Europe/Rome".split("/")[1]})
        assert got.structured_content == {"zone": "Rome"} and not got.is_error, got
        wrong = await client.call_tool("get_time", {})
        assert wrong.is_error and "missing" in wrong.content[0].text, wrong
        said = await client.call_tool("test_simple_text", {})
        assert said.content[0].text.startswith("This is a simple text"), said
        await client.call_tool("test_tool_with_progress", {}, progress_callback=progress)
        assert heard == [0, 50, 100], heard
        failed = await client.call_tool("test_error_handling", {})
        assert failed.is_error, failed
        read = await client.read_resource("test://template/7/data")
        assert '"id":"7"' in read.contents[0].text, read
        prompt = await client.get_prompt("test_prompt_with_arguments", {"arg1": "a", "arg2": "b"})
        assert "arg2='b'" in prompt.messages[0].content.text, prompt
        # Many at once, each with its own answer.
        many = await asyncio.gather(*(client.call_tool("get_time", {"zone": f"z{n}"}) for n in range(50)))
        assert [call.structured_content["zone"] for call in many] == [f"z{n}" for n in range(50)], many


asyncio.run(main(sys.argv[1]))
