"""The local cluster behind `holdfast dev`: every node its own process on loopback, all under one directory.

Reading order: `plan` (names and ports), `directory`, `cluster_file` (DIR/cluster.json), `daemon` (how one `holdfastd` is started and
tied to its runner), `supervisor` (the runner: starts, watches and stops them), `control` (how other commands ask the runner to
start, kill, wipe or stop a node). Only the runner starts and signals daemons, so a process id is never guessed.
"""
