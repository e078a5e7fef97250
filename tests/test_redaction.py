"""Nothing that is printed or stored holds a secret of the environment."""

from __future__ import annotations

import io

import pytest

from gpt_model.redaction import RedactedStream, redacted

SECRETS = {
    "MLFLOW_TRACKING_URI": ("http://user:p%40ssw0rd@tracking.example:5000/x", "p%40ssw0rd"),
    "MLFLOW_TRACKING_PASSWORD": ("tracking password", "tracking password"),
    "HF_TOKEN": ("hf_0123456789", "hf_0123456789"),
    "AWS_SECRET_ACCESS_KEY": ("/ab+cd/0123456789", "/ab+cd/0123456789"),
    "PIP_INDEX_URL": ("https://glpat-0123@index.example/simple", "glpat-0123"),
    "OPENAI_API_KEY": ("sk-0123456789", "sk-0123456789"),
    "STORE_URL": ("https://blob.example/x?sv=1&sig=abc%2Fdef0123", "abc%2Fdef0123"),
    "PGPASSWORD": ("postgres password", "postgres password"),
    "AZURE_STORAGE_CONNECTION_STRING": ("AccountKey=0123456789", "AccountKey=0123456789"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_of_the_environment_is_left_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, secret = SECRETS[name]
    monkeypatch.setenv(name, value)
    text = redacted(f"ConnectionError: {value} (with {secret}) did not answer")
    assert secret not in text
    assert text.startswith("ConnectionError: ") and text.endswith(" did not answer")


def test_a_decoded_password_is_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:p%40ss%2Fword@proxy.example:3128")
    assert redacted("login as me with p@ss/word") == "login as me with ***"


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a?mail=a@b.org",
        "git@github.com:owner/name",
        "true, 1 and /root/.ssh/id",
        "ordinary text: see http://example.org, write to a@b.org",
    ],
)
def test_other_text_is_left_as_it_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "ordinary")
    monkeypatch.setenv("USE_TOKEN", "true")
    assert redacted(text) == text


def test_users_and_passwords_are_left_out_of_any_address() -> None:
    text = "postgresql://me:secret@db.example/runs and http://token@host:5000/#/x"
    assert redacted(text) == "postgresql://db.example/runs and http://host:5000/#/x"


def test_a_redacted_stream_writes_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    stream = io.StringIO()
    print("the token is hf_0123456789", file=RedactedStream(stream))
    assert stream.getvalue() == "the token is ***\n"
