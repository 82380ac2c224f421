"""First boot and runtime of a ByteOr Cloud host: the path of the data.

Three processes with different privileges meet in files alone (`exchange`). A name below is a module
or a folder; the folders' order, from `base` up, is the direction of every import.

First boot (`provision`, root, once a boot; the only code that sees a token):

1. A one-time token enters by one of seven `sources`: among them `userdata`, unpacked by `parts`.
   `schema` checks the settings beside it; `tokens` remembers it by a keyed mark, never itself.
2. `facts` looks at what is on disk, `decision` names the next step, and `run` takes it and looks
   again: there is no step counter that a power cut could make a liar.
3. After `preflight` the token is presented once, under a durable intent, by `enrollment` (through
   `api.client` and `api.transport`). The answer becomes an identity in `identity.store`, sealed to
   this host (`identity.seal`, `identity.sealkey`, `identity.host`) and read back.
4. Only then, and when cloud-init has finished, does `cleanup` overwrite every copy of the token
   (`provision.erase`), leaving a `receipt` that says what remains.
5. At each start of the agent `unseal` opens the identity and hands a few values over (`handover`).

The agent (`agent`, unprivileged, resident) lives from those values:

6. It beats (`heartbeat`), fetches what the control plane signed (`deployments`, `keysets`), and
   puts it into the `inbox` for root, trusting nothing and deciding nothing.
7. Artifacts come in by `commands.upload` (`packing`, `cleaning`), wait in the `spool`, and are sent
   by `sender`.

The activator (`activate`, root, no network) trusts nothing that the agent wrote:

8. `activator` reads the inbox (`intake`), verifies (`signatures`, `chain`, `keyring`, `admission`),
   unpacks (`unpack`, `tarstream`), switches (`journal`, `switch`) and checks the result (`gate`).
9. It records `verdicts`, which the agent reports (`reports`) and `status` shows.

An operator's commands are one table in `cli`; each is a module of `commands`.
"""

__version__ = "0.2.0"
