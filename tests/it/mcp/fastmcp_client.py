"""The message that fastmcp shows without a key. Standard input is {"url"}."""

import asyncio
import json
import sys

from fastmcp import Client

given = json.load(sys.stdin)


async def main():
    try:
        async with Client(given["url"]) as client:
            return {"tools": [tool.name for tool in await client.list_tools()]}
    except Exception as error:
        return {"error": str(error)}


print(json.dumps(asyncio.run(main())))
