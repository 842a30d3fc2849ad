"""The clients of `config.federated` on machines of their own, by Flower (pip install '.[flower]').

On the machine of the server, and on that of each client, whose number is its own:

    flower-superlink --insecure --disable-runtime-dependency-installation
    flower-supernode --insecure --superlink=SERVER:8000 --node-config='client=0'

Then from anywhere, with [superlink.here] address = "SERVER:8000", insecure = true in
~/.flwr/config.toml (TLS in the place of --insecure is Flower's own):

    flwr run bigmodels/privacy/flower here --stream \
        --run-config='config="configs/mnist_federated.py" workdir="runs/federated"'

The server trains by the one loop, whose step asks `per_round` of the clients that are connected and
gives the mean of what they moved by to the config's optimiser (`server`). So its run is a run as
any other: it is resumed by the same command, evaluated and opened. Its own records are what
preprocessing learns from and what it is evaluated on; no client sends any. A client makes the steps
that `federated.local_update` has in a run of one machine (`client`), on all records that its
config.data.train reads; these settings of a node change that:

    client      its number, under config.federated.clients; the draw of its batches follows from it
    overrides   fields of the config that are its own, such as "data.train.path=/data/mine"
    share       true where records are everybody's, to take its share as config.federated has it
    trust       packages whose code the config may name

Settings of a run beside config and workdir are `overrides` of the config and `timeout`, the seconds
after which a round goes on without the clients that have not answered. A client that fails is left
out of its round.
"""
