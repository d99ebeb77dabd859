"""What the daemon counts of itself, as a Prometheus would read it."""

from __future__ import annotations

import re
from pathlib import Path

import anyio.to_thread
import pytest
from prometheus_client.parser import text_string_to_metric_families

from aiosd.errors import InvalidParams
from aiosd.protocol.system import SystemMetrics
from tests.daemon import Daemon
from tests.doubles.http_double import Script
from tests.doubles.openai_double import OpenAIDouble

pytestmark = pytest.mark.anyio


def samples(text: str) -> dict[str, float]:
    """Read by Prometheus's own parser: `name{label="value"}` to number."""
    return {
        sample.name + str(sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_every_part_is_counted(tmp_path: Path) -> None:
    async with OpenAIDouble() as model:
        model.scripts = [
            Script(status=500),
            Script(text=(), calls=(("calculator", '{"expression": "6*7"}'),)),
        ]
        config = "".join(
            f'[models.backends.{name}]\nkind = "openai"\nmodel = "{name}"\nurl = "{model.base}"\n'
            f"price_in = 1000.0\nprice_out = 1000.0\nlocal = true\n"
            for name in ("one", "two")
        )

        def work() -> tuple[dict[str, float], str]:
            with Daemon(tmp_path, config) as daemon:
                daemon.run(daemon.session(), "hello")
                with pytest.raises(InvalidParams):
                    daemon.session(priority="never")
                asked = daemon.ctl("metrics").stdout
                return samples(daemon.call(SystemMetrics()).text), asked

        found, asked = await anyio.to_thread.run_sync(work)
    (failed, used) = ("one", "two") if "aiosd_backend_failures_total['one']" in found else ("two", "one")
    assert found[f"aiosd_backend_failures_total['{failed}']"] == 1
    assert found[f"aiosd_reply_seconds_count['{used}']"] == 2
    assert found[f"aiosd_tokens_total['input', '{used}']"] == 22
    assert found[f"aiosd_tokens_total{sorted(['output', used])}"] == 14
    assert found["aiosd_tool_call_seconds_count['calculator', 'completed']"] == 1
    assert found["aiosd_request_seconds_count['0', 'session.run']"] == 1
    assert found["aiosd_request_seconds_count['-32602', 'session.create']"] == 1
    assert found["aiosd_request_seconds_bucket['+Inf', '0', 'session.run']"] == 1
    assert found["aiosd_task_seconds_count['completed']"] == 1
    assert found["aiosd_child_starts_total['memory worker']"] == 1
    assert found["aiosd_queue_length['one']"] == found["aiosd_open_tasks[]"] == 0
    assert found["aiosd_rows['tasks']"] == 1
    assert re.search(r'aiosd_process_resident_bytes\{pid="\d+",process="aiosd.memory.worker"\} \d', asked)
    assert re.search(r'aiosd_cache_hits\{cache="[a-z.]+"\} \d', asked)
