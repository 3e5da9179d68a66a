"""Volumes: named, thin, replicated runs of bytes over linearizable heads and immutable chunks.

Read in this order:

* `ports` (what this layer needs), `names` (what users may ask for), `volume` (what they see), `formulas`;
* `reference` (who keeps a chunk alive, see docs/decisions/references.md);
* `extent`, `page`, `page_store`, `volume_map`, `map_builder`, `map_splice`, `map_difference`: the map from addresses to chunks
  (docs/formats/volume-map.md);
* `head`: the register that names the newest root;
* `byte_budget`, `writer`, `content`: bytes in and out; `read_coalescer`: one register read for many readers;
* `reclaim`: giving back what no root needs; `service`: everything put together.
"""
