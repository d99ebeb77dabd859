"""model.*"""

from __future__ import annotations

import msgspec

from aiosd import server
from aiosd.methods.services import Services, handles
from aiosd.models.backend import Wait
from aiosd.protocol.models import (
    MODEL_PROGRESS,
    MODEL_TEXT,
    Backends,
    ModelEmbed,
    ModelInfer,
    ModelList,
    ModelRoute,
    Progress,
)
from aiosd.records import Decision, Embedded, Reply
from aiosd.tasks.inference import infer, model_request


@handles(ModelList)
async def model_list(services: Services, peer: server.Peer, params: ModelList) -> Backends:
    return Backends(backends=await services.pool.backends())


@handles(ModelRoute)
async def model_route(services: Services, peer: server.Peer, params: ModelRoute) -> Decision:
    return await services.pool.route(model_request(params))


@handles(ModelInfer)
async def model_infer(services: Services, peer: server.Peer, params: ModelInfer) -> Reply:
    async def on_text(text: str) -> None:
        await peer.notify(MODEL_TEXT, {"text": text})

    async def on_wait(wait: Wait) -> None:
        await peer.notify(MODEL_PROGRESS, Progress(**msgspec.structs.asdict(wait)))

    return await infer(
        services.pool,
        services.budget,
        services.database,
        services.registry.audit.secrets,
        params,
        on_text if params.stream else None,
        on_wait if params.progress else None,
    )


@handles(ModelEmbed)
async def model_embed(services: Services, peer: server.Peer, params: ModelEmbed) -> Embedded:
    return await services.pool.embed(params.texts)
