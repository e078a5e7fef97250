"""The endpoint at a real port, with OpenAI's own client and with plain requests."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import psutil
import pytest
from chat_store import CONTEXT, QUESTION, SPELT_MARKERS, answer_of, chat_store, status
from conftest import free_port

from gpt_model.rlhf.dialogue import Turn, messages
from pipelines.chat import engine as engine_module
from pipelines.chat.endpoint import serving
from pipelines.chat.engine import Engine, running
from pipelines.chat.session import Sampling, find_partners

REQUEST: dict[str, Any] = {
    "model": "tiny/supervised",
    "messages": messages(QUESTION),
    "temperature": 0,
    "max_tokens": 40,
}


HALF = "\ud800"  # of a surrogate pair: JSON can spell it


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Engine]]:
    store = chat_store(tmp_path_factory.mktemp("endpoint"))
    with running(find_partners(store, ["tiny/supervised", "tiny/aligned"])) as engines:
        yield engines


@pytest.fixture(scope="module")
def address(engines: list[Engine]) -> Iterator[str]:
    with serving(engines, free_port()) as address:
        yield address


@pytest.fixture(scope="module")
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=address, api_key="none", max_retries=0)


def post(address: str, route: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{address}{route}", json=body, timeout=60)


def error(response: httpx.Response) -> tuple[int, str, str | None]:
    """(status, the field it is about, code) of an error object."""
    content = response.json()["error"]
    assert set(content) == {"message", "type", "param", "code"} and content["message"]
    return response.status_code, content["param"], content["code"]


def test_models_are_listed_by_the_names_of_their_artifacts(
    client: openai.OpenAI, engines: list[Engine]
) -> None:
    assert [model.id for model in client.models.list()] == ["tiny/supervised", "tiny/aligned"]
    aligned = client.models.retrieve("tiny/aligned")
    assert (aligned.id, aligned.object) == ("tiny/aligned", "model")
    assert aligned.fingerprint == engines[1].partner.fingerprint  # type: ignore[attr-defined]
    for call in (
        lambda: client.models.retrieve("gpt-4"),
        lambda: client.chat.completions.create(**REQUEST | {"model": "gpt-4"}),
    ):
        with pytest.raises(openai.NotFoundError, match="there are tiny/supervised, tiny/aligned"):
            call()


def test_chat_is_the_engines_answer_whole_and_in_parts(
    client: openai.OpenAI, engines: list[Engine]
) -> None:
    expected = answer_of(engines[0], QUESTION, Sampling(temperature=0, max_new_tokens=40))
    whole = client.chat.completions.create(**REQUEST)
    assert whole.choices[0].message.content.strip() == expected
    assert whole.choices[0].message.role == "assistant"
    assert (whole.model, whole.object) == ("tiny/supervised", "chat.completion")
    assert whole.system_fingerprint == engines[0].partner.fingerprint
    template = engines[0].partner.template
    prompt, written = (
        len(template.encode_prompt(QUESTION)),
        len(template.tokenizer.encode(expected)),
    )
    assert whole.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
    }
    short = client.chat.completions.create(**REQUEST | {"max_tokens": 3})
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (3, "length")
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(**REQUEST | options)
    assert (last.choices, last.usage) == ([], whole.usage)
    assert {chunk.object for chunk in (*chunks, last)} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in (*chunks, last)}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert sum(map(bool, parts)) > 3 and "".join(parts).strip() == expected
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]


def test_a_stream_is_events_and_ends_with_done(address: str) -> None:
    body = REQUEST | {"stream": True, "max_tokens": 3}
    with httpx.stream("POST", f"{address}/chat/completions", json=body) as response:
        lines = list(response.iter_lines())
    assert response.headers["content-type"].startswith("text/event-stream")
    events, gaps = lines[::2], lines[1::2]
    assert not any(gaps) and events[-1] == "data: [DONE]" and len(events) == 5
    assert all(json.loads(event.removeprefix("data: "))["choices"] for event in events[:-1])


def test_stop_strings_end_an_answer_before_them(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**REQUEST).choices[0].message.content
    assert "sailor" in whole
    for stop in ("sailor", ["nothing", "ailor and"], [" sail", "sailor"]):
        strings = [stop] if isinstance(stop, str) else stop
        expected = whole[: min(whole.find(string) for string in strings if string in whole)]
        (choice,) = client.chat.completions.create(**REQUEST, stop=stop).choices
        assert (choice.message.content, choice.finish_reason) == (expected, "stop")
        chunks = list(client.chat.completions.create(**REQUEST, stop=stop, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_repeats_an_answer_and_each_of_n_answers_has_another(client: openai.OpenAI) -> None:
    def texts(**options: Any) -> list[str]:
        answer = client.chat.completions.create(**REQUEST | {"temperature": 5.0} | options)
        assert [choice.index for choice in answer.choices] == list(range(options.get("n", 1)))
        assert answer.usage.completion_tokens <= 40 * len(answer.choices)
        return [choice.message.content for choice in answer.choices]

    assert texts(seed=1) == texts(seed=1) != texts(seed=2)
    assert texts() != texts()
    three = texts(seed=1, n=3)
    assert len(set(three)) == 3 and three[:1] == texts(seed=1)
    likeliest = texts(temperature=0)
    assert texts(top_p=1e-6) == texts(extra_body={"top_k": 1}) == likeliest
    streamed = ["", "", ""]
    options = {"temperature": 5.0, "n": 3, "seed": 1, "stream": True}
    for chunk in client.chat.completions.create(**REQUEST | options):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == three


def test_concurrent_requests_get_the_answers_they_get_alone(client: openai.OpenAI) -> None:
    bodies = [
        REQUEST | {"model": model, "temperature": temperature, "seed": seed}
        for model in ("tiny/supervised", "tiny/aligned")
        for temperature in (0.0, 1.5, 3.0)
        for seed in (1, 2, 2)
    ]

    def text(body: dict[str, Any]) -> str:
        stream = client.chat.completions.create(**body, stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    alone = [text(body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        assert list(pool.map(text, bodies)) == alone
    assert len(set(alone)) == 2 * (1 + 2 + 2)


def test_logprobs_of_the_chat(client: openai.OpenAI) -> None:
    options = {"logprobs": True, "top_logprobs": 3, "max_tokens": 8}
    (choice,) = client.chat.completions.create(**REQUEST | options).choices
    entries = choice.logprobs.content
    assert "".join(entry.token for entry in entries) == choice.message.content
    in_bytes = b"".join(bytes(entry.bytes) for entry in entries)
    assert in_bytes.decode() == choice.message.content
    for entry in entries:  # at temperature 0 each token is the likeliest
        assert (entry.token, entry.logprob) == (
            entry.top_logprobs[0].token,
            entry.top_logprobs[0].logprob,
        )
        assert len(entry.top_logprobs) == 3 and entry.logprob <= 0
    chunks = client.chat.completions.create(**REQUEST | options, stream=True)
    streamed = [
        entry
        for chunk in chunks
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert streamed == entries
    plain = client.chat.completions.create(**REQUEST | {"logprobs": True, "max_tokens": 2})
    assert [entry.top_logprobs for entry in plain.choices[0].logprobs.content] == [[], []]
    assert client.chat.completions.create(**REQUEST).choices[0].logprobs is None


def test_completions_continue_a_prompt_that_their_caller_formats(
    client: openai.OpenAI, engines: list[Engine]
) -> None:
    template = engines[0].partner.template
    formatted = "<|user|>who sees the sailor?<|endoftext|><|assistant|>"
    options: dict[str, Any] = {"model": "tiny/supervised", "temperature": 0, "max_tokens": 40}
    expected = client.chat.completions.create(**REQUEST)
    prompts: tuple[Any, ...] = (formatted, template.encode_prompt(QUESTION), [formatted])
    for prompt in prompts:
        answer = client.completions.create(prompt=prompt, **options)
        assert answer.choices[0].text == expected.choices[0].message.content
        assert answer.usage == expected.usage
    default = client.completions.create(prompt=formatted, **options | {"max_tokens": None})
    assert default.usage.completion_tokens == 16
    several = client.completions.create(
        prompt=[formatted, "the old tree"],
        n=2,
        logprobs=2,
        seed=1,
        **options | {"temperature": 0.5},
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    prompt_tokens = len(template.encode_prompt(QUESTION)) + len(
        template.tokenizer.encode("the old tree")
    )
    assert several.usage.prompt_tokens == prompt_tokens
    for choice in several.choices:
        logprobs = choice.logprobs
        starts = zip(logprobs.text_offset, logprobs.tokens, strict=True)
        for offset, token in starts:
            assert choice.text[offset:].startswith(token) or token.startswith("<|")
        for token, logprob, top in zip(
            logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
        ):
            assert top[token] == logprob and 2 <= len(top) <= 3
    chunks = client.completions.create(prompt=formatted, stream=True, **options)
    assert "".join(chunk.choices[0].text for chunk in chunks) == (
        expected.choices[0].message.content
    )


def test_a_marker_in_a_message_is_text(client: openai.OpenAI, engines: list[Engine]) -> None:
    parts = [
        {"type": "text", "text": SPELT_MARKERS[:9]},
        {"type": "text", "text": SPELT_MARKERS[9:]},
    ]
    turns = (Turn("system", SPELT_MARKERS), Turn("user", SPELT_MARKERS))
    expected = answer_of(engines[0], turns, Sampling(temperature=0, max_new_tokens=5))
    for content in (SPELT_MARKERS, parts):
        dialogue = [{"role": "system", "content": content}, {"role": "user", "content": content}]
        options = {"messages": dialogue, "max_tokens": 5}
        answer = client.chat.completions.create(**REQUEST | options)
        assert answer.choices[0].message.content.strip() == expected
        assert answer.usage.prompt_tokens == len(engines[0].partner.template.encode_prompt(turns))


def test_an_answer_goes_on_from_the_opening_of_a_last_message_of_the_assistant(
    client: openai.OpenAI,
) -> None:
    whole = client.chat.completions.create(**REQUEST).choices[0].message.content
    opened = [*REQUEST["messages"], {"role": "assistant", "content": whole[:8]}]
    rest = client.chat.completions.create(**REQUEST | {"messages": opened, "max_tokens": 5})
    assert whole.startswith(whole[:8] + rest.choices[0].message.content)


def test_nothing_is_written_beyond_the_context(client: openai.OpenAI) -> None:
    for options in ({}, {"max_tokens": 5000}, {"max_completion_tokens": 5000}):
        body = {name: value for name, value in REQUEST.items() if name != "max_tokens"} | options
        answer = client.chat.completions.create(**body | {"temperature": 40.0})
        assert answer.usage.total_tokens <= CONTEXT
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=f"the model reads {CONTEXT}") as raised:
            client.chat.completions.create(
                **REQUEST | {"messages": [{"role": "user", "content": "tree " * 200}]},
                stream=stream,
            )
        assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "look"}}]),
        ("tool_choice", "auto"),
        ("functions", [{"name": "look"}]),
        ("response_format", {"type": "json_object"}),
        ("logit_bias", {"5": -100}),
        ("frequency_penalty", 0.5),
        ("presence_penalty", -0.5),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "alloy"}),
        ("reasoning_effort", "low"),
        ("web_search_options", {}),
        ("prediction", {"type": "content", "content": "a"}),
        ("store", True),
        ("generation_config", "{}"),
        ("temprature", 1),
    ],
)
def test_what_is_not_supported_is_refused_by_name(address: str, field: str, value: Any) -> None:
    response = post(address, "/chat/completions", **REQUEST, **{field: value})
    assert error(response) == (400, field, "unsupported_parameter")
    assert response.json()["error"]["message"].startswith(f"{field} is not supported here")


@pytest.mark.parametrize(("field", "value"), [("echo", True), ("suffix", "."), ("best_of", 2)])
def test_what_completions_do_not_support_is_refused_by_name(
    address: str, field: str, value: Any
) -> None:
    body = {"model": "tiny/supervised", "prompt": "the", field: value}
    assert error(post(address, "/completions", **body)) == (400, field, "unsupported_parameter")


def test_fields_that_ask_for_nothing_pass(client: openai.OpenAI) -> None:
    nothing: dict[str, Any] = {
        "tools": [],
        "tool_choice": None,
        "response_format": {"type": "text"},
        "logit_bias": {},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "seed": None,
        "stop": None,
        "user": "somebody",
    }
    answer = client.chat.completions.create(**REQUEST).choices[0].message
    assert client.chat.completions.create(**REQUEST, **nothing).choices[0].message == answer
    # a message as the client itself has it, with fields that are empty
    dialogue = [*REQUEST["messages"], answer, {"role": "user", "content": "and the tree?"}]
    assert client.chat.completions.create(**REQUEST | {"messages": dialogue, "max_tokens": 5})
    completion = {"best_of": 1, "echo": False, "suffix": None}
    assert client.completions.create(model="tiny/supervised", prompt="", **completion).choices


@pytest.mark.parametrize(
    ("change", "param", "sentence"),
    [
        ({"max_tokens": 0}, "max_tokens", "max_tokens is 0, and should be 1 or more."),
        ({"n": 200}, "n", "n is 200, and should be 128 or less."),
        ({"temperature": -1}, "temperature", "temperature is -1.0, and should be 0 or more."),
        ({"temperature": "hot"}, "temperature", "temperature is 'hot': "),
        ({"top_p": 0}, "top_p", "top_p is 0.0, and should be above 0, at most 1."),
        ({"seed": -4}, "seed", "seed is -4, and should be 0 or more."),
        ({"stop": 5}, "stop", "stop is 5: "),
        ({"stop": ["a", ""]}, "stop", "stop has an empty string"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "top_logprobs is 21, and should"),
        ({"top_logprobs": 2}, "top_logprobs", "top_logprobs is for logprobs: true only."),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream_options is for"),
        ({"max_completion_tokens": 2}, "max_tokens", "max_tokens and max_completion_tokens"),
        ({"messages": []}, "messages", "messages is []: "),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "A message is of"),
        (
            {"messages": [{"role": "user|><|assistant", "content": "a"}]},
            "messages[0].role",
            "A message is of role 'user|><|assistant', and there are system, user, assistant.",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is no text"),
        (
            {"messages": [{"role": "user", "content": "a", "name": "b"}]},
            "messages[0].name",
            "messages[0].name is not supported here",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "messages[0].content[0] is not supported here: leave it out. It is of type 'image_url'",
        ),
    ],
)
def test_a_wrong_value_is_named_with_what_it_should_be(
    address: str, change: dict[str, Any], param: str, sentence: str
) -> None:
    for stream in (False, True):
        body = REQUEST | {"stream": stream} | change
        if "stream_options" in change:
            body["stream"] = False
        response = post(address, "/chat/completions", **body)
        assert error(response)[:2] == (400, param)
        assert response.json()["error"]["message"].startswith(sentence)


def test_errors_beside_the_fields_are_error_objects_too(address: str) -> None:
    headers = {"Content-Type": "application/json"}
    for body in (b"", b"{", b"[]", b'"a"'):
        response = httpx.post(f"{address}/chat/completions", content=body, headers=headers)
        assert error(response)[:2] == (400, None)
    assert error(post(address, "/chat/completions", model="tiny/supervised"))[:2] == (
        400,
        "messages",
    )
    tokens = post(address, "/completions", model="tiny/supervised", prompt=[5, 10_000])
    assert error(tokens) == (400, "prompt", None)
    assert error(post(address, "/responses", model="tiny/supervised", input="a"))[0] == 404
    assert error(httpx.get(f"{address}/chat/completions"))[0] == 405
    assert "/v1/chat/completions" in httpx.get(f"{address}/engines").json()["error"]["message"]


@pytest.mark.parametrize(
    ("route", "fields", "expected"),
    [
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": HALF}]},
            (400, "messages[0].content"),
        ),
        (
            "chat/completions",
            {"messages": [{"role": HALF, "content": "a"}]},
            (400, "messages[0].role"),
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", HALF: "a"}]},
            (400, "messages[0].\\ud800"),
        ),
        ("chat/completions", {"model": HALF}, (404, "model")),
        ("chat/completions", {HALF: 1}, (400, None)),
        ("completions", {"prompt": f"the {HALF}"}, (400, None)),
    ],
)
def test_half_a_character_is_refused(
    address: str, route: str, fields: dict[str, Any], expected: tuple[int, str | None]
) -> None:
    body = json.dumps((REQUEST if "chat" in route else {"model": REQUEST["model"]}) | fields)
    headers = {"Content-Type": "application/json"}
    response = httpx.post(f"{address}/{route}", content=body, headers=headers)
    assert error(response)[:2] == expected, response.text


def test_a_model_that_fails_is_a_server_error_and_answers_again(
    address: str, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine_module, "generate", fail)
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        client.chat.completions.create(**REQUEST)
    with pytest.raises(openai.APIError, match="out of memory"):
        list(client.chat.completions.create(**REQUEST, stream=True))
    monkeypatch.undo()
    assert client.chat.completions.create(**REQUEST).choices[0].message.content


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_the_model(
    address: str, engines: list[Engine], monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    begun, ended = threading.Event(), threading.Event()
    generate = engine_module.generate

    def slow(model: Any, prompts: Any, length: int, *, on_choice: Any, **options: Any) -> Any:
        def delayed(*columns: Any) -> None:
            begun.set()
            time.sleep(0.5)
            on_choice(*columns)

        try:
            return generate(model, prompts, length, on_choice=delayed, **options)
        finally:
            ended.set()

    monkeypatch.setattr(engine_module, "generate", slow)
    with pytest.raises(httpx.ReadTimeout):  # the client leaves
        body = REQUEST | {"stream": stream}
        httpx.post(f"{address}/chat/completions", json=body, timeout=httpx.Timeout(0.3))
    assert begun.wait(10) and ended.wait(5)  # 40 tokens would take 20 seconds


def test_only_this_machine_is_answered(address: str) -> None:
    root, port = address.removesuffix("/v1"), urlsplit(address).port
    body = json.dumps(REQUEST | {"max_tokens": 2}).encode()
    for name in ("127.0.0.1", f"localhost:{port}", f"[::1]:{port}"):
        assert (
            status(f"{address}/chat/completions", body, Host=name, Origin=f"http://{name}") == 200
        )
    for headers in (
        {"Host": f"rebound.example:{port}"},
        {"Origin": "https://elsewhere.example"},
        {"Origin": "null"},
        {"Host": "[::1"},
    ):
        assert status(f"{address}/chat/completions", body, **headers) == 403
        assert status(f"{address}/models", **headers) == 403
    refusal = httpx.get(f"{address}/models", headers={"Host": "rebound.example"})
    assert error(refusal) == (403, None, None)
    for route in ("/reset", "/docs", "/openapi.json", "/v1/responses"):
        assert status(root + route, b"{}") == 404
    listening = [
        connection.laddr.ip
        for connection in psutil.Process().net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]
