"""An agent that is the official Python client. Standard input is {"url", "key"} or {"command",
"environment"}, with {"mode", "calls": [[tool, arguments], ...]}; standard output what came of it. The
client holds what a tool answers to the tool's own schema, and so does this."""

import asyncio
import json
import sys

import httpx2
import jsonschema
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

given = json.load(sys.stdin)


async def told(client):
    tools = (await client.list_tools()).tools
    schemas = {tool.name: tool.output_schema for tool in tools}
    results = []
    for name, arguments in given["calls"]:
        result = await client.call_tool(name, arguments)
        if not result.is_error:
            jsonschema.validate(result.structured_content, schemas[name])
        text = json.loads(result.content[0].text)
        assert result.is_error or text == result.structured_content, name
        results.append({"is_error": bool(result.is_error), "answer": text})
    return {
        "version": client.protocol_version,
        "server": client.server_info.name,
        "tools": [tool.name for tool in tools],
        "results": results,
    }


async def main():
    if "command" in given:
        server = StdioServerParameters(
            command=given["command"], args=["mcp"], env=given["environment"]
        )
        async with Client(server, mode=given["mode"]) as client:
            return await told(client)
    headers = {"authorization": f"Bearer {given['key']}"}
    async with httpx2.AsyncClient(headers=headers, trust_env=False) as http:
        transport = streamable_http_client(given["url"], http_client=http)
        async with Client(transport, mode=given["mode"]) as client:
            return await told(client)


print(json.dumps(asyncio.run(main())))
