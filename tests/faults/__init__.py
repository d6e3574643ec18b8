"""Everything is broken here on purpose, while acknowledged events are counted: see docs in each module.

| module | what it is |
|---|---|
| `cluster` | real services and workers on any database, clients that do not give up, and ways to hurt processes |
| `ledger` | what was acknowledged: nothing counts before it is on the disk |
| `receiver` | the destination, an evil one where asked to, which writes down all that it sees |
| `checker` | compares the three: ledger, receiver's log, database |
| `proxy` | a way to the database that loses, delays or holds back single statements and their answers |
| `server` | a private database server to kill, stop, starve and fill up |
| `faulty` | the `cassata` command, with one thing that goes wrong at one exact point |
"""
