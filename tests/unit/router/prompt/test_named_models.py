"""The model of a request that is named in a form or in the query, and the id of a stored object."""

from __future__ import annotations

from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_router.prompt import parse_body, parse_now
from ghostcacher_router.prompt.model_name import BEGIN_BYTES, MODEL_BYTES_MAX, PARTS_MAX, model_of_form
from ghostcacher_router.prompt.parse import NOW_BYTES_MAX
from ghostcacher_router.types import RequestShape

TRANSCRIPTIONS = "/v1/audio/transcriptions"
BOUNDARY = b"----WebKitFormBoundary7MA4YWxk"
HEADERS = {b"content-type": b"multipart/form-data; boundary=" + BOUNDARY}


def part(name: str, value: bytes, more: str = "") -> bytes:
    return b'--%b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n' % (
        BOUNDARY,
        name.encode(),
        more.encode(),
        value,
    )


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--" + BOUNDARY + b"--\r\n"


def shape(path: str, body: bytes = b"", headers: dict[bytes, bytes] | None = None) -> RequestShape:
    return parse_body(path, body, headers or {}, 1)


AUDIO = part("file", b"RIFF" + bytes(range(256)) * 8, '; filename="a.wav"\r\nContent-Type: audio/wav')
MODEL = part("model", b"whisper")
LARGE = part("file", b"RIFF" + b"\r\n--" * BEGIN_BYTES, '; filename="a.wav"')


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (form(MODEL, AUDIO), "whisper"),
        (form(AUDIO, MODEL.replace(b"\r\nContent-D", b"\r\nContent-Type: text/plain\r\nContent-D")), "whisper"),
        (form(AUDIO, MODEL), "whisper"),
        (form(LARGE, MODEL), "whisper"),
        (form(AUDIO), None),
        (b"a preamble\r\n" + form(MODEL), "whisper"),
        (form(part("file", b'name="model"\r\n\r\nfake', '; filename="a"'), MODEL), "whisper"),
        (form(part("model", b"fake", '; filename="a"'), MODEL), "whisper"),
        (form(part("x", b"", '; name2="model"')), None),
        (form(part("model", "größe".encode())), "größe"),
        (form(part("model", b"m" * (MODEL_BYTES_MAX + 1))), None),
        (form(part("model", b"")), None),
        (form(*[part("x", b"")] * PARTS_MAX, MODEL), None),
        (MODEL, None),
        (b"", None),
    ],
)
def test_model_of_a_form_is_found(body: bytes, expected: str | None) -> None:
    """Before or behind its files; a file that looks like the field is none."""
    assert shape(TRANSCRIPTIONS, body, HEADERS).model == expected


@pytest.mark.parametrize(
    "content_type",
    [
        b'Multipart/Form-Data;charset=utf-8; boundary="%b"' % BOUNDARY,
        b"multipart/form-data; boundary=%b; x=y" % BOUNDARY,
    ],
)
def test_boundary_is_read_as_clients_write_it(content_type: bytes) -> None:
    assert shape(TRANSCRIPTIONS, form(AUDIO, MODEL), {b"content-type": content_type}).model == "whisper"


@given(st.binary(max_size=400), st.sampled_from([b"", b"\r\n", b"\r\n\r\n", b"--" + BOUNDARY, MODEL[40:]]))
def test_any_form_is_read_without_error(body: bytes, piece: bytes) -> None:
    """Whatever stands in it."""
    found = model_of_form(form(MODEL[:60]) + body.replace(b"\x00", piece), HEADERS)
    assert found is None or found


def test_form_without_boundary_names_nothing() -> None:
    assert shape(TRANSCRIPTIONS, form(MODEL), {b"content-type": b"multipart/form-data; boundary="}).model is None


@pytest.mark.parametrize("model", ["whisper", "org/name v1+x&y=z%", "größe"])
def test_model_of_the_query_is_read(model: str) -> None:
    """Where no body names one."""
    query = urlencode({"a": "model=no", "model": model})
    assert shape(f"/v1/realtime?{query}").model == model
    assert shape(f"/v1/audio/speech?{query}", b'{"model": "tts"}').model == "tts"
    assert shape("/v1/realtime?xmodel=no&model=").model is None


@pytest.mark.parametrize(
    ("path", "body", "needs_id", "makes_id", "keeps"),
    [
        ("/v1/responses", b'{"input": "x"}', None, True, True),
        ("/v1/responses", b'{"input": "x", "store": false, "previous_response_id": "resp_1"}', "resp_1", True, False),
        ("/v1/responses/resp_1", b"", "resp_1", False, False),
        ("/v1/responses/resp%201/input_items?after=x", b"", "resp 1", False, False),
        ("/v1/responses/resp_1/cancel", b"{}", "resp_1", False, False),
        ("/v1/responses/render", b"{}", None, False, False),
        ("/v1/responses/" + 300 * "x", b"", None, False, False),
        ("/v1/files", b"", None, True, True),
        ("/v1/files/file-1/content", b"", "file-1", False, False),
        ("/v1/batches", b'{"input_file_id": "file-1"}', "file-1", True, True),
        ("/v1/batches", b'{"input_file_id": 7}', None, True, True),
        ("/v1/audio/speech", b'{"model": "m"}', None, False, False),
        ("/open_session", b'{"capacity_of_str_len": 9}', None, True, True),
        ("/close_session", b'{"session_id": "s1"}', "s1", False, False),
        ("/generate", b'{"text": "x", "session_params": {"id": "s1", "rid": null}}', "s1", False, False),
        ("/generate", b'{"text": "x", "session_params": {"id": {}}}', None, False, False),
        ("/generate", b'{"text": "x", "session_params": {"id": "s1", "x": "%b"}}' % (b"x" * 5000), None, False, False),
        ("/v1/completions", b'{"prompt": "x", "session_params": {"id": "s1"}}', "s1", False, False),
        ("/v1/chat/completions", b'{"messages": [], "session_params": {"id": "s1"}}', "s1", False, False),
        ("/v1/embeddings", b'{"input": "x", "session_id": "s1"}', None, False, False),
    ],
)
def test_stored_object_is_named(path: str, body: bytes, needs_id: str | None, makes_id: bool, keeps: bool) -> None:
    found = shape(path, body)
    assert (found.needs_id, found.makes_id, found.keeps) == (needs_id, makes_id, keeps)


@pytest.mark.parametrize(
    ("path", "headers", "at_once"),
    [
        (TRANSCRIPTIONS, HEADERS, True),
        (TRANSCRIPTIONS, {}, False),
        ("/v1/chat/completions", HEADERS, False),
        ("/v1/responses?x=1", HEADERS, False),
    ],
)
def test_only_forms_are_read_at_once_however_large(path: str, headers: dict[bytes, bytes], at_once: bool) -> None:
    """A prompt that calls itself a form is one all the same."""
    body = b'{"messages":"%b"}' % (b"x" * NOW_BYTES_MAX)
    assert (parse_now(path, body, headers, 1) is not None) is at_once


def test_text_that_continues_a_session_is_no_prompt() -> None:
    """What its blocks are depends on what the session has heard before: nothing is to be learned from it."""
    assert shape("/v1/completions", b'{"prompt": "x"}').prompt is not None
    assert shape("/v1/completions", b'{"prompt": "x", "session_params": {"id": "s1"}}').prompt is None
