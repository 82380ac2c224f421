"""First boot and runtime of a ByteOr Cloud host.

The path of the data: a one-time token enters by one of seven sources (`provision.sources`), is remembered only by a
mark (`provision.marks`), is presented once under a durable intent (`provision.enrollment` through `api`, `transport`),
and becomes an identity that is sealed to this host (`identity`, `envelope`, `sealkey`). Then its copies are overwritten
and a receipt says what remains (`erase`). At every start of the agent `unseal` opens the identity and hands three
values over (`handover`); the agent (`agent`, by way of `agent.arrival`) lives from those alone. `launch` gives them to a
program that asks for them. What the plane signs comes in by `agent.keysets` and `agent.deployments`, is laid down for root by
`agent.inbox`, and judged, unpacked and put in force by `activate`; `agent.reports` says what became of it. What is to be
kept of an incident comes in by `agent.upload` (`agent.packing`, `agent.parts`), waits in `agent.spool`, and goes by
`agent.artifacts`.
"""

__version__ = "0.1.0"
