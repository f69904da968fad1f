"""The contract on the wire: names of queues and keys in Redis, and the form of every message on them.

A job travels as an ordinary Celery message (protocol 2) with one more header, `cyxwiz` (`JobHeader`). The scheduler
publishes the same headers and body on one node's queue and adds the header `cyxwiz_assignment` (`Assignment`).
Everything else is a JSON object in a Redis list with a `kind`: reports go from nodes to the scheduler, controls from
the scheduler to one node, commands and queries from clients to the scheduler. A sender that waits names a reply key.
One file for each direction; names.py has the names.
"""
