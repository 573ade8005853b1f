"""The tools as langchain-mcp-adapters passes them to a model, and one call: as openai_agents.py."""

import asyncio
import json
import sys

from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_mcp_adapters.client import MultiServerMCPClient

given = json.load(sys.stdin)


async def main():
    connection = {
        "transport": "streamable_http",
        "url": given["url"],
        "headers": {"authorization": f"Bearer {given['key']}"},
    }
    tools = await MultiServerMCPClient({"webhooks": connection}).get_tools()
    name, arguments = given["call"]
    [tool] = [tool for tool in tools if tool.name == name]
    answer = await tool.ainvoke(arguments)
    functions = [convert_to_openai_tool(tool)["function"] for tool in tools]
    return {
        "tools": [{"name": one["name"], "schema": one["parameters"]} for one in functions],
        "answer": json.loads(answer if isinstance(answer, str) else answer[0]["text"]),
    }


print(json.dumps(asyncio.run(main())))
