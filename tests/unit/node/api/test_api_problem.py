"""Every error of the tree as HTTP."""

from __future__ import annotations

import json

import pytest

from cluster import errors
from node.api.problem import problem_document, problem_response, status_of


@pytest.mark.parametrize("code", sorted(errors.type_registry))
def test_every_error_has_a_status_and_a_title(code: str) -> None:
    error = errors.error_from_wire(code, "what happened", {})
    response = problem_response(error)
    assert response.status == status_of(error) >= 400
    assert isinstance(response.body, bytes)
    document = json.loads(response.body)
    told = "outcome-unknown" if code == "peer-lost" else code
    assert document["type"] == f"https://holdfast.dev/problems/{told}"
    assert document["retryable"] is error.retryable
    if error.retryable:
        assert response.status in (503, 507)
    assert ("Retry-After" in response.headers) == (response.status == 503)
    assert ("WWW-Authenticate" in response.headers) == (response.status == 401)


def test_an_error_keeps_its_kind_whatever_a_peer_adds_to_it() -> None:
    error = errors.error_from_wire("conflict", "first", {"message": 1, "self": 2, 3: "three", "etag": "x"})  # type: ignore[dict-item]
    assert (type(error), error.message, error.details) == (errors.Conflict, "first", {"3": "three", "etag": "x"})


def test_a_lost_peer_may_have_done_what_was_asked() -> None:
    """A client must not take it for a refusal: nothing is known of what became of the request."""
    lost = errors.PeerLost("no answer from n3 within 2 s", peer="n3", retry_after_s=4)
    response = problem_response(lost)
    assert (response.status, response.headers["Retry-After"]) == (503, "4")
    document = problem_document(lost, 503)
    unknown = problem_document(errors.OutcomeUnknown("", peer="n3", retry_after_s=4), 503)
    assert {**document, "detail": ""} == unknown
    assert document["detail"].startswith("no answer from n3 within 2 s. ")
    assert "may or may not have taken effect" in document["detail"]
    never_sent = problem_document(errors.PeerUnavailable("n3 refuses connections"), 503)
    assert never_sent["type"].endswith("/peer-unavailable")


def test_details_never_replace_the_members_of_the_standard() -> None:
    error = errors.Invalid("wrong", field="size", status=200, type="x", title="y", detail="z", retryable=True)
    document = problem_document(error, 400)
    assert (document["status"], document["detail"], document["retryable"], document["field"]) == (
        400,
        "wrong",
        False,
        "size",
    )
    assert document["type"].endswith("/invalid")


def test_details_that_json_lacks_become_text() -> None:
    error = errors.Corrupt("bad", chunk=b"\x01\xff", nodes={"b", "a"}, other=object)
    body = problem_response(error).body
    assert isinstance(body, bytes)
    document = json.loads(body)
    assert (document["chunk"], document["nodes"]) == ("01ff", ["a", "b"])


@pytest.mark.parametrize(
    ("hint", "header"), [(0.2, "1"), (3.1, "4"), (float("inf"), "1"), ("soon", "1"), (-5, "1"), (None, "1")]
)
def test_retry_after_is_whole_seconds(hint: object, header: str) -> None:
    assert problem_response(errors.Busy("full", retry_after_s=hint)).headers["Retry-After"] == header


def test_a_code_of_a_newer_release_is_an_internal_error() -> None:
    response = problem_response(errors.error_from_wire("brand-new", "something", {}))
    assert response.status == 500
