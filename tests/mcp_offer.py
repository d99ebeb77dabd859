"""The MCP door with what the official conformance suite asks for behind it, over loopback HTTP:

    python -m tests.mcp_offer

Prints its address. https://github.com/modelcontextprotocol/conformance says which tools, resources and prompts there are.
"""

from __future__ import annotations

import socket
from typing import Any

import anyio
import mcp_types as t
import uvicorn
from mcp import MCPError
from mcp.server.context import ServerRequestContext

from aiosd.mcp_server import door
from tests import mcp_rounds

Ctx = ServerRequestContext[Any, Any]

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAD//w=="
NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def texts(*names: str) -> dict[str, Any]:
    return {"type": "object", "properties": {n: {"type": "string"} for n in names}, "required": list(names)}


SCHEMA_2020_12: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

TOOLS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            *("test_simple_text", "test_image_content", "test_audio_content", "test_embedded_resource"),
            *("test_multiple_content_types", "test_tool_with_logging", "test_tool_with_progress"),
            *("test_error_handling", "test_elicitation_sep1034_defaults", "test_elicitation_sep1330_enums"),
            *("test_reconnection", "test_logging_tool", "test_missing_capability"),
        ),
        NOTHING,
    ),
    "test_sampling": texts("prompt"),
    "test_elicitation": texts("message"),
    "json_schema_2020_12_tool": SCHEMA_2020_12,
    **dict.fromkeys(mcp_rounds.TOOLS, NOTHING),
}

DEFAULTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "default": "John Doe"},
        "age": {"type": "integer", "default": 30},
        "score": {"type": "number", "default": 95.5},
        "status": {"type": "string", "enum": ["active", "inactive", "pending"], "default": "active"},
        "verified": {"type": "boolean", "default": True},
    },
}


def titled(word: str) -> list[dict[str, str]]:
    return [
        {"const": f"value{i}", "title": f"{nth} {word}"}
        for i, nth in enumerate(("First", "Second", "Third"), 1)
    ]


ENUMS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "untitledSingle": {"type": "string", "enum": ["option1", "option2", "option3"]},
        "titledSingle": {"type": "string", "oneOf": titled("Option")},
        "legacyEnum": {
            "type": "string",
            "enum": ["opt1", "opt2", "opt3"],
            "enumNames": ["Option One", "Option Two", "Option Three"],
        },
        "untitledMulti": {
            "type": "array",
            "items": {"type": "string", "enum": ["option1", "option2", "option3"]},
        },
        "titledMulti": {"type": "array", "items": {"anyOf": titled("Choice")}},
    },
}
USER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "username": {"type": "string", "description": "User's response"},
        "email": {"type": "string", "description": "User's email address"},
    },
    "required": ["username", "email"],
}


def image() -> t.ImageContent:
    return t.ImageContent(data=PNG, mime_type="image/png")


def embedded(uri: str, text: str, kind: str = "text/plain") -> t.EmbeddedResource:
    return t.EmbeddedResource(resource=t.TextResourceContents(uri=uri, mime_type=kind, text=text))


def said(*content: Any, failed: bool = False) -> t.CallToolResult:
    blocks = [t.TextContent(text=c) if isinstance(c, str) else c for c in content]
    return t.CallToolResult(content=blocks, is_error=failed)


class Fixture:
    def handlers(self) -> dict[str, Any]:
        names = (
            *("list_tools", "call_tool", "list_resources", "list_resource_templates", "read_resource"),
            *("subscribe_resource", "unsubscribe_resource", "list_prompts", "get_prompt", "completion"),
            "set_logging_level",
        )
        return {f"on_{name}": getattr(self, name) for name in names}

    async def list_tools(self, ctx: Ctx, params: Any) -> t.ListToolsResult:
        return t.ListToolsResult(
            tools=[t.Tool(name=n, description=f"Conformance: {n}", input_schema=s) for n, s in TOOLS.items()]
        )

    async def call_tool(
        self, ctx: Ctx, params: t.CallToolRequestParams
    ) -> t.CallToolResult | t.InputRequiredResult:
        if rounds := mcp_rounds.TOOLS.get(params.name):
            return mcp_rounds.missing(rounds, params) or said(mcp_rounds.answered(params))
        given = params.arguments or {}
        match params.name:
            case "test_simple_text":
                return said("This is a simple text response for testing.")
            case "test_image_content":
                return said(image())
            case "test_audio_content":
                return said(t.AudioContent(data=WAV, mime_type="audio/wav"))
            case "test_embedded_resource":
                return said(embedded("test://embedded-resource", "This is an embedded resource content."))
            case "test_multiple_content_types":
                text = '{"test":"data","value":123}'
                mixed = embedded("test://mixed-content-resource", text, "application/json")
                return said("Multiple content types test:", image(), mixed)
            case "test_missing_capability":
                mcp_rounds.need_sampling(params.meta)
                return said("The client can sample.")
            case "test_tool_with_logging" | "test_logging_tool":
                for words in ("Tool execution started", "Tool processing data", "Tool execution completed"):
                    await ctx.session.send_log_message("info", words, related_request_id=ctx.request_id)
                    await anyio.sleep(0.05)  # the suite wants to see them come one by one
                return said("Logged three times.")
            case "test_tool_with_progress":
                for done in (0, 50, 100):
                    await ctx.session.report_progress(done, 100)
                    await anyio.sleep(0.05)
                return said("Done.")
            case "test_error_handling":
                return said("This tool intentionally returns an error for testing", failed=True)
            case "test_sampling":
                message = t.SamplingMessage(role="user", content=t.TextContent(text=given["prompt"]))
                reply = await ctx.session.create_message(
                    [message], max_tokens=100, related_request_id=ctx.request_id
                )
                return said(f"LLM response: {getattr(reply.content, 'text', reply.content)}")
            case "test_elicitation":
                return await self._elicit(ctx, "User response", given["message"], USER)
            case "test_elicitation_sep1034_defaults":
                return await self._elicit(ctx, "Elicitation completed", "Please check the defaults", DEFAULTS)
            case "test_elicitation_sep1330_enums":
                return await self._elicit(ctx, "Elicitation completed", "Please choose", ENUMS)
            case "test_reconnection":
                if ctx.close_sse_stream is not None:
                    await ctx.close_sse_stream()
                return said("Reconnected.")
            case "json_schema_2020_12_tool":
                return said("Fine.")
        raise MCPError(t.INVALID_PARAMS, f"Unknown tool: {params.name}")

    async def _elicit(self, ctx: Ctx, before: str, message: str, schema: dict[str, Any]) -> t.CallToolResult:
        answer = await ctx.session.elicit_form(message, schema, related_request_id=ctx.request_id)
        return said(f"{before}: action={answer.action}, content={answer.content}")

    async def list_resources(self, ctx: Ctx, params: Any) -> t.ListResourcesResult:
        kinds = {"static-text": "text/plain", "static-binary": "image/png", "watched-resource": "text/plain"}
        return t.ListResourcesResult(
            resources=[
                t.Resource(uri=f"test://{n}", name=n, description=f"Conformance: {n}", mime_type=kind)
                for n, kind in kinds.items()
            ]
        )

    async def list_resource_templates(self, ctx: Ctx, params: Any) -> t.ListResourceTemplatesResult:
        one = t.ResourceTemplate(
            uri_template="test://template/{id}/data", name="template", description="By id"
        )
        return t.ListResourceTemplatesResult(resource_templates=[one])

    async def read_resource(self, ctx: Ctx, params: t.ReadResourceRequestParams) -> t.ReadResourceResult:
        uri = str(params.uri)
        parts = uri.split("/")
        if uri == "test://static-text":
            text, kind = "This is the content of the static text resource.", "text/plain"
        elif uri == "test://watched-resource":
            text, kind = "Watched.", "text/plain"
        elif uri == "test://static-binary":
            blob = t.BlobResourceContents(uri=uri, mime_type="image/png", blob=PNG)
            return t.ReadResourceResult(contents=[blob])
        elif len(parts) == 5 and parts[2] == "template":
            text = f'{{"id":"{parts[3]}","templateTest":true,"data":"Data for ID: {parts[3]}"}}'
            kind = "application/json"
        else:
            raise MCPError(t.INVALID_PARAMS, "Resource not found", {"uri": uri})
        return t.ReadResourceResult(contents=[t.TextResourceContents(uri=uri, mime_type=kind, text=text)])

    async def subscribe_resource(self, ctx: Ctx, params: Any) -> t.EmptyResult:
        return t.EmptyResult()

    async def unsubscribe_resource(self, ctx: Ctx, params: Any) -> t.EmptyResult:
        return t.EmptyResult()

    async def list_prompts(self, ctx: Ctx, params: Any) -> t.ListPromptsResult:
        arguments = {
            "test_simple_prompt": (),
            "test_prompt_with_arguments": ("arg1", "arg2"),
            "test_prompt_with_embedded_resource": ("resourceUri",),
            "test_prompt_with_image": (),
            mcp_rounds.PROMPT: (),
        }
        return t.ListPromptsResult(
            prompts=[
                t.Prompt(
                    name=name,
                    description=f"Conformance: {name}",
                    arguments=[t.PromptArgument(name=a, description=a, required=True) for a in taken],
                )
                for name, taken in arguments.items()
            ]
        )

    async def get_prompt(
        self, ctx: Ctx, params: t.GetPromptRequestParams
    ) -> t.GetPromptResult | t.InputRequiredResult:
        if params.name == mcp_rounds.PROMPT and (asked := mcp_rounds.missing(mcp_rounds.CONTEXT, params)):
            return asked
        given = params.arguments or {}
        match params.name:
            case "test_simple_prompt":
                blocks: list[Any] = [t.TextContent(text="This is a simple prompt for testing.")]
            case "test_prompt_with_arguments":
                words = f"Prompt with arguments: arg1='{given.get('arg1')}', arg2='{given.get('arg2')}'"
                blocks = [t.TextContent(text=words)]
            case "test_prompt_with_embedded_resource":
                resource = embedded(given["resourceUri"], "Embedded resource content for testing.")
                blocks = [resource, t.TextContent(text="Please process the embedded resource above.")]
            case mcp_rounds.PROMPT:
                blocks = [t.TextContent(text=mcp_rounds.answered(params))]
            case "test_prompt_with_image":
                blocks = [image(), t.TextContent(text="Please analyze the image above.")]
            case _:
                raise MCPError(t.INVALID_PARAMS, f"Unknown prompt: {params.name}")
        return t.GetPromptResult(messages=[t.PromptMessage(role="user", content=block) for block in blocks])

    async def completion(self, ctx: Ctx, params: Any) -> t.CompleteResult:
        return t.CompleteResult(completion=t.Completion(values=[], total=0, has_more=False))

    async def set_logging_level(self, ctx: Ctx, params: Any) -> t.EmptyResult:
        return t.EmptyResult()


def main() -> None:
    app = door(Fixture()).streamable_http_app()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]}/mcp", flush=True)  # noqa: T201 - for who started it
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
