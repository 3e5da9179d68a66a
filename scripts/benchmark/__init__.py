"""What `scripts/bench` runs: a benchmark of a whole cluster on one machine, not a test.

Read `measurements` first (what is measured, and how), then `testbed` (the cluster), `large_load` and `small_load` (the clients),
`floor` (what the machine itself can do), `coordinator` (a member inside the benchmark's own process), `figure` (the table).
"""
