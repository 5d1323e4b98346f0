"""A cluster on one machine, in network namespaces: what its clients see while its parts fail.

`python -m tools.cluster --minutes 10`, as root on Linux; docs/operate.md has its table.
"""
