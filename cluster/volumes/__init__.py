"""Volumes: named, thin, replicated runs of bytes over linearizable heads and immutable chunks.

Read in this order:

* `ports` (what this layer needs), `names` (what users may ask for), `volume` (what they see), `formulas`;
* `reference` (who keeps a chunk alive, see docs/decisions/references.md);
* `extent`, `page`, `page_store`, `volume_map`, `map_builder`, `map_splice`, `map_difference`: the map from addresses to chunks
  (docs/formats/volume-map.md);
* `head`, `read_coalescer`, `head_store`: the register that names the newest root; `listing`: all of them in order;
* `fence`: how a write in progress is shut out; `root_search`, `judge`: whether a reference is needed;
* `byte_budget`, `write_budget`, `writer`, `writing`: a body on its way in; `content`: a version on its way out; `pieces`;
  `first_error`, `together`;
* `reclaim`: giving back what no root needs; `sweep`: finding what nobody remembers; `service`: everything put together.
"""
