"""What a workflow's author imports, what packs it, and what runs it inside workers and jobs.

Standard library and Python 3.9 syntax only: this folder is shipped inside every archive. It knows nothing of the
server. Definitions (`mill`, `patterns`, `event`, `errors`, `units`) load in a few milliseconds, so they import no
`typing`, `dataclasses`, `inspect` or `pathlib` at run time; `pack` and `archive` run where a flow is deployed and may.
Nothing here is shared between threads.
"""
