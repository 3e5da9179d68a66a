"""The OpenAPI 3.1 document of the API, kept by hand; a test checks that it and the routes list the same operations.

Written as small functions that say once what many operations share: errors as problems, conditional headers, the volume's name.
"""

from __future__ import annotations

from typing import Any

from cluster.volumes.names import (
    DEFAULT_CHUNK_BYTES,
    DEFAULT_DURABILITY,
    DURABILITIES,
    MAX_CHUNK_BYTES,
    MAX_REPLICAS,
    MAX_VOLUME_BYTES,
    MIN_CHUNK_BYTES,
    NAME_LIMIT,
    name_pattern,
)
from node.api.problem import PROBLEM_CONTENT_TYPE, PROBLEM_TYPE_PREFIX
from node.api.repair_routes import WHERE_LIMIT, WHERE_PAGE
from node.api.request import JSON_BODY_LIMIT
from node.api.volume_routes import LIST_LIMIT

Json = dict[str, Any]

_INTEGER = {"type": "integer", "format": "int64"}
_STRING = {"type": "string"}
_BYTES = {"schema": {"type": "string", "format": "binary"}}


def openapi_document(release: str) -> Json:
    """The whole document, JSON-able. `release` is the version of the software that answers."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "version": release,
            "summary": "Volumes on a cluster of equal nodes",
            "description": (
                "Any node answers for the whole cluster. Errors are problem documents (RFC 9457) with a stable `type`; "
                "`retryable` says whether the same request may succeed later. JSON bodies are at most "
                f"{JSON_BODY_LIMIT} bytes; unknown fields and query parameters are refused."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"bearer": []}],
        "paths": {
            "/v1/volumes": {"get": _list_volumes(), "post": _create_volume()},
            "/v1/volumes/{volume}": {
                "parameters": [_volume_name()],
                "get": _show_volume(),
                "patch": _resize_volume(),
                "delete": _delete_volume(),
            },
            "/v1/volumes/{volume}/data": {
                "parameters": [_volume_name()],
                "get": _read_data(),
                "head": _head_data(),
                "put": _write_data(),
            },
            "/v1/volumes/{volume}/where": {"parameters": [_volume_name()], "get": _where()},
            "/v1/repair": {
                "get": _operation(
                    "getRepair",
                    "How the repair of the whole cluster goes",
                    "repair",
                    {"200": _json("What all nodes say of themselves", _ref("Repair"))},
                    400,
                )
            },
            "/v1/repair/run": {"post": _run_repair()},
            "/v1/repair/pause": {"post": _control_repair("pauseRepair", "Let repair and scrub rest on all nodes")},
            "/v1/repair/resume": {"post": _control_repair("resumeRepair", "Let repair and scrub go on on all nodes")},
            "/v1/cluster": {"get": _view("getCluster", "The cluster as a whole", "cluster")},
            "/v1/nodes": {"get": _view("listNodes", "The nodes and their states", "cluster")},
            "/v1/layout": {"get": _view("getLayout", "The layout, and what is staged", "layout")},
            "/v1/jobs": {"get": _view("listJobs", "The background work of this node", "cluster")},
            "/v1/layout/plan": {"post": _plan_layout()},
            "/v1/layout/apply": {"post": _apply_layout()},
            "/v1/layout/abort": {"post": _abort_layout()},
            "/v1/openapi.json": {"get": _view("getOpenApi", "This document", "about")},
            "/healthz": {"get": {**_view("getHealth", "Whether the process is alive", "about", 500), "security": []}},
            "/readyz": {
                "get": {
                    **_view("getReadiness", "Whether this node has joined and knows a layout", "about", 503),
                    "security": [],
                }
            },
            "/metrics": {"get": _metrics()},
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The cluster's api_token. Not needed where none is configured.",
                }
            },
        },
    }


def _list_volumes() -> Json:
    return _operation(
        "listVolumes",
        "List volumes in the order of their names",
        "volumes",
        {"200": _json("A page of volumes", _ref("VolumePage"))},
        400,
        parameters=[
            _query("prefix", _STRING, "Only names that begin with this"),
            _query("after", _STRING, "Only names after this: the `next` of the page before"),
            _query("limit", {**_INTEGER, "minimum": 1, "maximum": LIST_LIMIT, "default": LIST_LIMIT}, "Volumes a page"),
        ],
    )


def _create_volume() -> Json:
    return _operation(
        "createVolume",
        "Create a volume; it reads as zeroes and takes no space",
        "volumes",
        {"201": _volume_response("Created", {"Location": _header("The volume's path")})},
        *(400, 409, 413, 415, 501),
        body=_json_body("NewVolume"),
    )


def _show_volume() -> Json:
    return _operation(
        "getVolume",
        "Show a volume",
        "volumes",
        {"200": _volume_response("The volume"), "304": {"description": "It still has the ETag of If-None-Match"}},
        *(400, 404, 412),
        parameters=_read_conditions(),
    )


def _resize_volume() -> Json:
    return _operation(
        "resizeVolume",
        "Make a volume larger; what is added reads as zeroes",
        "volumes",
        {"200": _volume_response("The volume with its new size")},
        *(400, 404, 412, 413, 415, 501),
        parameters=_write_conditions(),
        body=_json_body("VolumeChange"),
    )


def _delete_volume() -> Json:
    return _operation(
        "deleteVolume",
        "Delete a volume and its content",
        "volumes",
        {"204": {"description": "Deleted"}},
        *(400, 404, 412),
        parameters=_write_conditions(),
    )


def _read_data() -> Json:
    ranged = {**_data_headers(), "Content-Range": _header("`bytes FIRST-LAST/SIZE`")}
    return _operation(
        "readData",
        "Read a volume, whole or one range",
        "data",
        {
            "200": {"description": "The whole content", "headers": _data_headers(), "content": _octets()},
            "206": {"description": "The range asked for", "headers": ranged, "content": _octets()},
            "304": {"description": "The content still has the ETag of If-None-Match"},
        },
        *(400, 404, 412, 416),
        parameters=[
            _in_header("Range", "`bytes=A-B`, `bytes=A-` or `bytes=-N`. Several ranges are answered with the whole"),
            _in_header("If-Range", "An ETag: the Range counts only while the content still has it"),
            *_read_conditions(),
        ],
        description=(
            "One version of the content is sent, whatever is written meanwhile. An answer that fails half-way ends with a "
            "broken connection, before Content-Length is reached."
        ),
    )


def _head_data() -> Json:
    return _operation(
        "headData",
        "The headers of the whole content",
        "data",
        {
            "200": {"description": "The content exists", "headers": _data_headers()},
            "304": {"description": "The content still has the ETag of If-None-Match"},
        },
        *(400, 404, 412),
        parameters=_read_conditions(),
    )


def _write_data() -> Json:
    shape = _new_volume_properties()
    return _operation(
        "writeData",
        "Replace the content, or write one range of it",
        "data",
        {
            "200": _volume_response("Replaced, or the range is written"),
            "201": _volume_response(
                "The volume did not exist and was created", {"Location": _header("The volume's path")}
            ),
        },
        *(400, 404, 408, 409, 411, 412, 415, 416, 417, 501, 507),
        parameters=[
            _in_header(
                "Content-Range",
                "`bytes FIRST-LAST/SIZE` or `bytes FIRST-LAST/*`: write there, inside the volume's size",
            ),
            _query("chunk_size", shape["chunk_size"], "When this PUT creates the volume"),
            _query("replicas", shape["replicas"], "When this PUT creates the volume"),
            _query("durability", shape["durability"], "When this PUT creates the volume"),
            *_write_conditions(),
        ],
        body={"required": True, "content": _octets()},
        description=(
            "Without Content-Range, content and size become exactly the body. The change is all or nothing, for readers and after "
            "a crash. The body has a Content-Length or is chunked; `Expect: 100-continue` is honoured, so that a refused body is "
            "never sent. A Content-Range whose SIZE is not the volume's is refused with 416."
        ),
    )


def _plan_layout() -> Json:
    return _operation(
        "planLayout",
        "Stage changes, and see what applying them would do",
        "layout",
        {"200": _json("The plan", {"type": "object"})},
        *(400, 409, 413, 415, 501),
        body=_json_body("LayoutStage", required=False),
    )


def _apply_layout() -> Json:
    return _operation(
        "applyLayout",
        "Apply the plan with this version",
        "layout",
        {"200": _json("The layout that is now being filled", {"type": "object"})},
        *(400, 409, 413, 415, 501),
        body=_json_body("LayoutVersion"),
    )


def _abort_layout() -> Json:
    return _operation(
        "abortLayout",
        "Drop what is staged, or stop a change under way",
        "layout",
        {"200": _json("The layout afterwards", {"type": "object"})},
        *(400, 409),
    )


def _where() -> Json:
    return _operation(
        "whereIsVolume",
        "On which nodes the bytes of a volume lie",
        "repair",
        {"200": _json("A page of pieces; holes have none", _ref("PiecePage"))},
        *(400, 404),
        parameters=[
            _query("offset", {**_INTEGER, "minimum": 0, "default": 0}, "Begin at this byte"),
            _query("length", {**_INTEGER, "minimum": 1}, "Only so many bytes from `offset` on"),
            _query("limit", {**_INTEGER, "minimum": 1, "maximum": WHERE_LIMIT, "default": WHERE_PAGE}, "Pieces a page"),
        ],
    )


def _run_repair() -> Json:
    return _control_repair(
        "runRepair",
        "Compare all replicas now, and mend what differs",
        body=_json_body("RepairRun", required=False),
    )


def _control_repair(operation_id: str, summary: str, **more: Any) -> Json:
    answer = _json("What each node did, and why one did not", _ref("RepairControl"))
    return _operation(operation_id, summary, "repair", {"200": answer}, *(400, 413, 415, 501), **more)


def _metrics() -> Json:
    return _operation(
        "getMetrics",
        "Counters in a text format of Prometheus",
        "about",
        {"200": {"description": "The counters", "content": {"text/plain": {"schema": _STRING}}}},
    )


def _schemas() -> Json:
    version = {**_INTEGER, "minimum": 1}
    return {
        "Volume": _volume_schema(),
        "VolumePage": _object(
            {
                "volumes": {"type": "array", "items": _ref("Volume")},
                "next": {"type": ["string", "null"], "description": "The next page's `after`; null on the last page"},
            },
            "volumes",
            "next",
        ),
        "NewVolume": _object(_new_volume_properties(), "name", "size", closed=True),
        "VolumeChange": _object({"size": _size()}, "size", closed=True),
        "LayoutStage": _object({"stage": {"type": "array", "items": _ref("StagedNode")}}, closed=True),
        "StagedNode": _object(
            {
                "name": _STRING,
                "zone": _STRING,
                "capacity": {
                    **_INTEGER,
                    "minimum": 1,
                    "description": "Bytes offered, or a weight in one unit for all nodes",
                },
                "remove": {"type": "boolean", "default": False},
            },
            "name",
            closed=True,
        ),
        "LayoutVersion": _object(
            {
                "version": version,
                "plan": {
                    **_STRING,
                    "description": "Of the plan that was read: 409 when the plan has changed since. Without it, any plan of the version",
                },
            },
            "version",
            closed=True,
        ),
        **_repair_schemas(),
        "Problem": _object(
            {
                "type": {"type": "string", "format": "uri", "examples": [PROBLEM_TYPE_PREFIX + "not-found"]},
                "title": _STRING,
                "status": {"type": "integer"},
                "detail": {"type": "string", "description": "What happened and what to do next"},
                "retryable": {"type": "boolean", "description": "Whether the same request may succeed later"},
                "field": {"type": "string", "description": "The field, parameter or header that is wrong"},
            },
            *("type", "title", "status", "detail", "retryable"),
        ),
    }


def _volume_schema() -> Json:
    count = {**_INTEGER, "minimum": 0}
    moment = {"type": "string", "format": "date-time"}
    properties = {
        **_new_volume_properties(),
        "id": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "etag": {"type": "string", "description": "The version of the content, without the quotes of the ETag header"},
        "generation": {**_INTEGER, "minimum": 1},
        "created_at": moment,
        "modified_at": moment,
        "map": _object({"inline": {"type": "boolean"}}, "inline"),
        "sharding": _object({"D": count, "S": count, "P": count}, "D", "S", "P"),
        "replication": _object({"n": count, "R": count}, "n", "R"),
        "synchronisation": _object({"m": count, "T": count}, "m", "T"),
    }
    return _object(properties, *properties)


def _repair_schemas() -> Json:
    count = {**_INTEGER, "minimum": 0}
    seconds = {"type": "number", "minimum": 0}
    names = {"type": "array", "items": _STRING}
    totals: Json = {
        "health": {"type": "string", "enum": ["healthy", "degraded"]},
        "copies_missing": {**count, "description": "Copies of chunks that are not where they belong"},
        "copies_due": count,
        "keys_diverged": count,
        "chunks_diverged": count,
        "oldest_divergence_s": {**_or_null(seconds), "description": "null: nothing has diverged"},
        "handoffs": {**count, "description": "Copies kept for nodes that were absent"},
        "rate_bytes_per_s": seconds,
        "rate_chunks_per_s": seconds,
        "eta_s": {**_or_null(seconds), "description": "null: nothing is missing, or nothing moves"},
        "passes": {**count, "description": "Comparisons with all peers that every node has completed since its start"},
        "paused": names,
    }
    scrub = {
        "oldest_verification_s": {
            **_or_null(seconds),
            "description": "Nothing was last read and verified longer ago; null: not known yet",
        },
        "verified_chunks": count,
        "damaged_chunks": count,
    }
    counts = (
        *("handoffs", "keys_diverged", "chunks_diverged", "refilling_partitions", "queue"),
        *("copied_chunks", "copied_bytes", "passes", "verified_chunks", "damaged_chunks"),
    )
    told = {
        **dict.fromkeys(counts, _or_null(count)),
        **dict.fromkeys(("oldest_divergence_s", "rate_bytes_per_s", "oldest_verification_s"), _or_null(seconds)),
        "paused": _or_null({"type": "boolean"}),
        "last_error": _or_null(_STRING),
    }
    node = {
        "name": _STRING,
        "answered": {"type": "boolean", "description": "false: what it would have to tell is null"},
        "copies_due": count,
        "copies_missing": count,
        **told,
    }
    done = {"name": _STRING, "done": {"type": "boolean"}, "error": _or_null(_STRING)}
    piece = {
        "offset": count,
        "length": count,
        "chunk": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "chunk_offset": count,
        "due": {**names, "description": "Nodes that should hold the chunk"},
        "held_by": {**names, "description": "Nodes that hold it"},
        "unknown": {**names, "description": "Nodes that did not answer"},
        "elsewhere": {**names, "description": "Those of `held_by` that are not due"},
    }
    page = {
        "volume": _STRING,
        "etag": _STRING,
        "size": count,
        "replicas": count,
        "pieces": {"type": "array", "items": _object(piece, *piece)},
        "next": {
            **_or_null(count),
            "description": "The next page's `offset`; `length` counts from there; null at the end",
        },
    }
    whole: Json = {
        **totals,
        "scrub": _object(scrub, *scrub),
        "nodes": {"type": "array", "items": _object(node, *node)},
    }
    control: Json = {"action": _STRING, "nodes": {"type": "array", "items": _object(done, *done)}}
    return {
        "Repair": _object(whole, *whole),
        "RepairRun": _object(
            {"scrub": {"type": "boolean", "default": False, "description": "Read and verify everything held, too"}},
            closed=True,
        ),
        "RepairControl": _object(control, *control),
        "PiecePage": _object(page, *page),
    }


def _or_null(schema: Json) -> Json:
    return {**schema, "type": [schema["type"], "null"]}


def _new_volume_properties() -> Json:
    return {
        "name": {"type": "string", "maxLength": NAME_LIMIT, "pattern": f"^{name_pattern.pattern}$"},
        "size": _size(),
        "chunk_size": {
            **_INTEGER,
            "minimum": MIN_CHUNK_BYTES,
            "maximum": MAX_CHUNK_BYTES,
            "default": DEFAULT_CHUNK_BYTES,
            "description": "Bytes, a power of two",
        },
        "replicas": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_REPLICAS,
            "description": "Default: what the cluster keeps.",
        },
        "durability": {"type": "string", "enum": list(DURABILITIES), "default": DEFAULT_DURABILITY},
    }


def _size() -> Json:
    return {**_INTEGER, "minimum": 0, "maximum": MAX_VOLUME_BYTES, "description": "Bytes"}


_PROBLEMS = {
    400: "The request is not valid; `field` names what is wrong",
    401: "The Bearer token is missing or wrong, or a web page of another site asks for a change",
    404: "There is no such volume",
    408: "The body stopped coming",
    409: "It exists, or something changed meanwhile",
    411: "The length of the body is not known",
    412: "If-Match or If-None-Match does not hold; nothing was changed",
    413: "The JSON body is too large",
    415: "The body is of a type or encoding that is not taken",
    416: "The range lies outside the volume; Content-Range tells its size",
    417: "The expectation can't be met",
    421: "An API without a token is asked under a name that is not in its `api_hosts`",
    500: "An internal error, or content of which no good copy is left",
    501: "The body has a transfer coding other than chunked",
    503: "Too few nodes answer, the outcome is unknown, or the node is not ready; Retry-After says when to try again",
    507: "No space left",
}


def _operation(
    operation_id: str,
    summary: str,
    tag: str,
    answers: Json,
    *problems: int,
    always: tuple[int, ...] = (401, 421, 500, 503),
    **more: Any,
) -> Json:
    body = more.pop("body", None)
    operation: Json = {"operationId": operation_id, "summary": summary, "tags": [tag], **more}
    if body is not None:
        operation["requestBody"] = body
    responses = dict(answers)
    for status in sorted({*problems, *always}):
        responses[str(status)] = {
            "description": _PROBLEMS[status],
            "content": {PROBLEM_CONTENT_TYPE: {"schema": _ref("Problem")}},
        }
    operation["responses"] = responses
    return operation


def _view(operation_id: str, summary: str, tag: str, *problems: int) -> Json:
    return _operation(
        operation_id,
        summary,
        tag,
        {"200": _json(summary, {"type": "object"})},
        *problems,
        always=() if problems else (400, 401, 421, 500, 503),
    )


def _volume_response(description: str, headers: Json | None = None) -> Json:
    return {**_json(description, _ref("Volume")), "headers": {"ETag": _header("The version"), **(headers or {})}}


def _data_headers() -> Json:
    return {
        "ETag": _header("The version of the content, a strong validator"),
        "Last-Modified": _header("When it was written, for people"),
        "Accept-Ranges": _header("`bytes`"),
        "Content-Length": _header("Bytes that follow"),
    }


def _read_conditions() -> list[Json]:
    return [
        _in_header("If-Match", "ETags or `*`: 412 when the version is another"),
        _in_header("If-None-Match", "ETags or `*`: 304 when the version is one of them"),
    ]


def _write_conditions() -> list[Json]:
    return [
        _in_header("If-Match", "ETags or `*`: change only such a version, else 412"),
        _in_header("If-None-Match", "`*`: only when there is no such volume, else 412"),
    ]


def _volume_name() -> Json:
    return {"name": "volume", "in": "path", "required": True, "schema": _new_volume_properties()["name"]}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _in_header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "schema": _STRING, "description": description}


def _header(description: str) -> Json:
    return {"schema": _STRING, "description": description}


def _octets() -> Json:
    return {"application/octet-stream": _BYTES}


def _json(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _json_body(name: str, *, required: bool = True) -> Json:
    return {"required": required, "content": {"application/json": {"schema": _ref(name)}}}


def _object(properties: Json, *required: str, closed: bool = False) -> Json:
    schema: Json = {"type": "object", "properties": properties}
    if required:
        schema["required"] = list(required)
    if closed:
        schema["additionalProperties"] = False
    return schema


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}
