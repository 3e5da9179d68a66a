"""Documents of `/v1/repair` as a node makes them."""

from __future__ import annotations

from typing import Any


def repair_document(
    *, missing: int = 0, silent: tuple[str, ...] = (), names: tuple[str, ...] = ("n1", "n2", "n3")
) -> dict[str, Any]:
    """A cluster of idle nodes; ``missing`` copies are the first one's, ``silent`` ones don't answer."""
    return {
        "health": "degraded" if missing or silent else "healthy",
        "copies_missing": missing,
        "copies_due": 300,
        "keys_diverged": 0,
        "chunks_diverged": 0,
        "oldest_divergence_s": None,
        "handoffs": 0,
        "rate_bytes_per_s": 0.0,
        "rate_chunks_per_s": 0.0,
        "eta_s": None,
        "passes": 5,
        "paused": [],
        "scrub": {"oldest_verification_s": 100.0, "verified_chunks": 10, "damaged_chunks": 1},
        "nodes": [
            {
                "name": name,
                "answered": name not in silent,
                "copies_due": 100,
                "copies_missing": missing if name == names[0] else 0,
                "handoffs": 0,
                "keys_diverged": 0,
                "chunks_diverged": 0,
                "oldest_divergence_s": None,
                "refilling_partitions": 0,
                "queue": 0,
                "copied_chunks": 0,
                "copied_bytes": 0,
                "rate_bytes_per_s": 0.0,
                "passes": 5,
                "paused": False,
                "last_error": None,
                "oldest_verification_s": 100.0,
                "verified_chunks": 10,
                "damaged_chunks": 0,
            }
            if name not in silent
            else {"name": name, "answered": False, "copies_due": 100, "copies_missing": 0, "passes": None}
            for name in names
        ],
    }


def status_document(repair: dict[str, Any] | None, *attention: str) -> dict[str, Any]:
    """``GET /v1/cluster`` of the same cluster."""
    return {
        "cluster_id": "c0ffee",
        "health": "degraded" if attention else "healthy",
        "attention": list(attention),
        "node": "n1",
        "release": "1",
        "nodes": {"in_layout": 3, "alive": 3, "suspect": 0, "dead": 0, "left": 0},
        "layout": {
            "version": 1,
            "epoch": 1,
            "replication_factor": 3,
            "partitions": 1024,
            "changing_to": None,
            "partitions_without_quorum": 0,
        },
        "store": {"chunks": 100, "live_bytes": 1 << 20, "log_bytes": 2 << 20, "free_bytes": 1 << 30, "quarantined": 0},
        "repair": None if repair is None else {key: value for key, value in repair.items() if key not in OF_NODES},
    }


OF_NODES = ("passes", "paused", "scrub", "nodes")
