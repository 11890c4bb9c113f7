"""Clients as people have them: Azure's by OpenAI in Python, LangChain's, OpenAI's in Node; none is changed.

Anthropic's is in `test_gateway_vllm.py`, for the emulated engine has no messages.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway_rig import engine, rig, run

from sooner.gateway.app import Gateway
from sooner.gateway.settings import QueueSettings

NODE = "openai@6.49.0"
LANGCHAIN = (
    "distro==1.9.0", "jsonpatch==1.48", "jsonpointer==3.12", "langchain-core==1.7.2",
    "langchain-protocol==0.0.20", "langsmith==0.15.1", "orjson==3.13.0", "requests-toolbelt==1.0.0",
    "tenacity==9.2.1", "uuid_utils==0.19.0", "xxhash==4.1.0", "zstandard==0.25.0", "langchain-openai==1.7.3",
)  # fmt: skip
PATIENCE = 120.0  # seconds
PYTHON_PROGRAM = """
import json, sys
from langchain_openai import AzureChatOpenAI, ChatOpenAI
url, said = sys.argv[1], {'api_key': 'none', 'max_retries': 0}
plain = ChatOpenAI(base_url=url + '/v1', model='m', **said)
whole = plain.invoke('hi')
text = ''.join(piece.content for piece in plain.stream('hi'))
azure = AzureChatOpenAI(azure_endpoint=url, azure_deployment='m', api_version='2024-10-21', **said)
told = azure.invoke('hi').content
tokens = whole.usage_metadata['output_tokens']
print(json.dumps({'whole': whole.content, 'text': text, 'azure': told, 'tokens': tokens}))
"""
NODE_PROGRAM = """
import OpenAI from 'openai';
const ai = new OpenAI({baseURL: process.argv[2] + '/v1', apiKey: 'none', maxRetries: 0});
const messages = [{role: 'user', content: 'hi'}];
const whole = await ai.chat.completions.create({model: 'm', messages});
let text = '', chunks = 0;
for await (const one of await ai.chat.completions.create({model: 'm', messages, stream: true})) {
  text += one.choices[0]?.delta?.content ?? ''; chunks += 1;
}
const kinds = [];
const events = await ai.responses.create({model: 'm', input: 'hi', stream: true});
for await (const one of events) kinds.push(one.type);
let refused = 0;
try { await ai.chat.completions.create({model: 'no', messages}); } catch (error) { refused = error.status; }
const said = whole.choices[0].message.content;
console.log(JSON.stringify({whole: said, text, chunks, last: kinds.at(-1), refused}));
"""


def test_azures_client_names_the_model_in_the_path() -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed; it comes with vLLM")

    async def test() -> None:
        async with rig([engine(model="org/m")], aliases={"gpt": "org/m"}) as gateway:
            for deployment in ("gpt", "org/m"):
                ai = openai.AsyncAzureOpenAI(
                    azure_endpoint=gateway.url, azure_deployment=deployment, api_key="none",
                    api_version="2024-10-21", max_retries=0,
                )  # fmt: skip
                async with ai:
                    said = [{"role": "user", "content": "hi"}]
                    whole = await ai.chat.completions.create(model="what it says here", messages=said)
                    assert whole.model == "org/m"
                    stream = await ai.chat.completions.create(model="", messages=said, stream=True)
                    text = "".join(
                        [one.choices[0].delta.content or "" async for one in stream if one.choices]
                    )
                    assert text == whole.choices[0].message.content
            v1 = openai.AsyncOpenAI(base_url=f"{gateway.url}/openai/v1/", api_key="none", max_retries=0)
            async with v1:
                reply = await v1.responses.create(model="gpt", input="hi")
                assert reply.output_text == text

    run(test, PATIENCE)


@pytest.fixture(scope="module")
def langchain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program for Python in a folder that has LangChain's client.

    It is not installed beside the tests: it brings a plugin into every run of pytest.
    """
    pytest.importorskip("openai", reason="openai is not installed; it comes with vLLM")
    folder = tmp_path_factory.mktemp("langchain")
    install(
        folder, sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", ".", *LANGCHAIN
    )
    return written(folder / "program.py", PYTHON_PROGRAM)


SLOW = {"iteration_s": 0.1}  # so that every stream begins with comments where those are on
COMMENTS = QueueSettings(comment_every=0.02)


@pytest.mark.parametrize(("cost", "queue"), [({}, QueueSettings()), (SLOW, COMMENTS)], ids=["", "comments"])
def test_langchains_client_works_unmodified(
    langchain: Path, cost: dict[str, Any], queue: QueueSettings
) -> None:
    async def test() -> None:
        async with rig([engine(**cost)], queue=queue) as gateway:
            told = await told_by(gateway, sys.executable, langchain)
            assert told["whole"] == told["text"] == told["azure"]
            assert told["tokens"] == 5

    run(test, PATIENCE)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program for Node in a folder that has OpenAI's client."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    install(folder, "npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", NODE)
    return written(folder / "program.mjs", NODE_PROGRAM)


@pytest.mark.parametrize(("cost", "queue"), [({}, QueueSettings()), (SLOW, COMMENTS)], ids=["", "comments"])
def test_nodes_client_works_unmodified(node: Path, cost: dict[str, Any], queue: QueueSettings) -> None:
    async def test() -> None:
        async with rig([engine(**cost)], queue=queue) as gateway:
            told = await told_by(gateway, "node", node)
            assert told["whole"] == told["text"]
            assert told["chunks"] > 5
            assert told["last"] == "response.completed"
            assert told["refused"] == 404

    run(test, PATIENCE)


def install(folder: Path, *command: str) -> None:
    """Install what a program needs into a folder; skip where it cannot be had."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{command[-1]} was not installed within {PATIENCE:.0f} s")
    if done.returncode:
        pytest.skip(f"{command[-1]} could not be installed: {done.stderr[-200:]}")


def written(path: Path, text: str) -> Path:
    """Return a file that holds a text now."""
    path.write_text(text)
    return path


async def told_by(gateway: Gateway, interpreter: str, program: Path) -> Any:
    """Return what a program tells of a gateway."""
    environment = {**os.environ, "PYTHONPATH": str(program.parent), "LANGSMITH_TRACING": "false"}
    running = await asyncio.create_subprocess_exec(
        interpreter, str(program), gateway.url, cwd=program.parent, env=environment, stdout=-1, stderr=-1
    )
    out, error = await running.communicate()
    assert running.returncode == 0, error.decode()
    return json.loads(out)
