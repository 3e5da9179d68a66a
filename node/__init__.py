"""One daemon on one disk.

Read in this order: `config` (settings), `main`, `daemon` (where all parts are put together), `data_directory` and `belonging` (whose
disk it is), `data_watch` and `job_runner` (what runs beside the core), `live_volumes`, `cluster_view` and `repair_view` (the core as
the API sees it); then the packages `storage` and `api`. `names`, `threads`, `open_files`: what the system gives.
"""
