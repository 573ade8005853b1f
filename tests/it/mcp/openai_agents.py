"""The tools as openai-agents passes them to a model, and one call. Standard input is {"url", "key",
"call": [tool, arguments]}, standard output what came of it."""

import asyncio
import json
import sys

from agents.mcp import MCPServerStreamableHttp, MCPUtil
from agents.tool_context import ToolContext

given = json.load(sys.stdin)


async def main():
    params = {"url": given["url"], "headers": {"authorization": f"Bearer {given['key']}"}}
    async with MCPServerStreamableHttp(params=params, client_session_timeout_seconds=60) as server:
        listed = await server.list_tools()
        tools = [
            MCPUtil.to_function_tool(tool, server, convert_schemas_to_strict=True) for tool in listed
        ]
        name, arguments = given["call"]
        [tool] = [tool for tool in tools if tool.name == name]
        arguments = json.dumps(arguments)
        context = ToolContext(
            context=None, tool_name=name, tool_call_id="call_1", tool_arguments=arguments
        )
        answer = await tool.on_invoke_tool(context, arguments)
        dotted = await server.call_tool(name.replace("_", "."), json.loads(arguments))
        return {
            "tools": [
                {"name": one.name, "strict": one.strict_json_schema, "schema": one.params_json_schema}
                for one in tools
            ],
            "answer": json.loads(answer["text"] if isinstance(answer, dict) else answer),
            "dotted": json.loads(dotted.content[0].text),
        }


print(json.dumps(asyncio.run(main())))
