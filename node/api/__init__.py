"""The HTTP API of a node, on aiohttp's low-level server.

Read in this order: `ports` (what it needs), `router`, `request` (one request, its body), `app` (the path every request takes), then
the routes: `volume_routes`, `data_routes`, `cluster_routes`, `repair_routes`, `health`; the pure parts they use: `ranges`,
`conditions`, `fields`, `volume_json`; `problem` (errors to HTTP, the only place), `auth`, `metrics`, `openapi` (the document,
checked against the routes by a test); last `server` (listening, limits, an orderly end).
"""
